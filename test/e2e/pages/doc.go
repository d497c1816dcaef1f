// Package pages runs the commands of the pages in docs/, so that every documented command works.
//
// The second word of the info string marks each fenced block of shell:
//
//	sh run    the commands are run in the page's order by one shell, as root in a cell and in a copy of the tree, with the
//	          programs installed and kurid started; each must succeed
//	sh node   the commands need a cluster, a registry or programs of another runtime: the verbs and flags of kuri and kurid
//	          are looked up in the programs' own help
//
// A block without a mark is an error. Relative links on all pages must resolve, including their
// anchors. A test of internal/config checks that kurid knows the keys in TOML blocks.
package pages
