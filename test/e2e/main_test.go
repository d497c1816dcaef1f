package e2e

import (
	"testing"

	"github.com/kuri-cri/kuri/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
