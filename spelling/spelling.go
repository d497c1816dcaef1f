// Package spelling measures how similar two words are, for "did you mean" hints in errors. It is
// pure and imports nothing of kuri or kurid, which share it.
package spelling

// Distance returns the Levenshtein distance of two words: the number of bytes to insert, delete or
// replace.
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
