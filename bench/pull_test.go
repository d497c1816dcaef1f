package main

import (
	"bytes"
	"io"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

func TestLayersAreOfTheirSizeAndPackAsProgramsDo(t *testing.T) {
	s := shape{"small", 1, 30, 64 << 10}
	plain := s.layer(7)
	if !bytes.Equal(plain, s.layer(7)) {
		t.Error("the same layer made twice is not the same")
	}
	if bytes.Equal(plain, s.layer(8)) {
		t.Error("two layers are the same")
	}
	if most := s.files * (s.size + 512) * 11 / 10; len(plain) < s.files*s.size || len(plain) > most {
		t.Errorf("a layer of %d files of %d bytes has %d bytes", s.files, s.size, len(plain))
	}
	open := map[string]func(io.Reader) (io.Reader, error){
		"gzip": func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		"zstd": func(r io.Reader) (io.Reader, error) { return zstd.NewReader(r) },
	}
	for _, p := range packings {
		packed, err := p.pack(plain)
		if err != nil {
			t.Fatal(err)
		}
		if share := float64(len(packed)) / float64(len(plain)); share < 0.3 || share > 0.6 {
			t.Errorf("%s packs it to %.2f of its size", p.name, share)
		}
		r, err := open[p.name](bytes.NewReader(packed))
		if err != nil {
			t.Fatal(err)
		}
		if again, err := io.ReadAll(r); err != nil || !bytes.Equal(again, plain) {
			t.Errorf("%s does not give back what went in: %v", p.name, err)
		}
	}
}
