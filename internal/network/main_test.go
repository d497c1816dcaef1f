package network

import "testing"

func TestMain(m *testing.M) { mainInNamespaces(m) }
