// Package spelling finds the word that a misspelt one was meant to be, for hints in errors. It is pure, and shared by kuri
// and kurid: it imports nothing of either.
package spelling

// Distance returns the Levenshtein distance of two words: how many bytes have to be changed, added or left out to make one
// of the other.
func Distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
