package bridge

import (
	"testing"

	"github.com/kuri-cri/kuri/internal/network/networktest"
)

func TestMain(m *testing.M) { networktest.Main(m) }
