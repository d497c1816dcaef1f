package server

import (
	"errors"
	"slices"
	"testing"
)

func TestChunksHaveEachItemOnce(t *testing.T) {
	for name, test := range map[string]struct {
		sizes  []int
		chunks []int
	}{
		"none":           {nil, nil},
		"one":            {[]int{1}, []int{1}},
		"many small":     {make([]int, 2*chunkItems+1), []int{chunkItems, chunkItems, 1}},
		"exactly full":   {make([]int, chunkItems), []int{chunkItems}},
		"some large":     {[]int{chunkBytes, chunkBytes / 2, chunkBytes / 2, 1}, []int{1, 2, 1}},
		"one over limit": {[]int{1, 3 * chunkBytes, 1}, []int{2, 1}},
	} {
		items := make([]int, len(test.sizes))
		for i := range items {
			items[i] = i
		}
		var got, chunks []int
		err := inChunks(items, func(i int) int { return test.sizes[i] }, func(some []int) error {
			got, chunks = append(got, some...), append(chunks, len(some))
			return nil
		})
		if err != nil || !slices.Equal(got, items) || !slices.Equal(chunks, test.chunks) {
			t.Errorf("%s: chunks of %v, want %v: %v", name, chunks, test.chunks, err)
		}
	}
	gone := errors.New("the client is gone")
	if err := inChunks([]int{1, 2},
		func(int) int { return chunkBytes }, func([]int) error { return gone }); !errors.Is(err, gone) {
		t.Errorf("%v", err)
	}
}
