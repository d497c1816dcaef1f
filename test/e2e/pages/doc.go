// Package pages runs the commands of the pages in docs/, so that a reader finds no command that does not work.
//
// A fenced block of shell on a page is marked by the second word of its info string:
//
//	sh run    the commands are run, in the page's order, by one shell in a cell, as root, in a copy of the tree, with the
//	          programs installed and kurid started; each must succeed
//	sh node   the commands need a cluster, a registry or another runtime's programs: of those of kuri and kurid the verb and
//	          the flags are looked up in the programs' own help
//
// A block without a mark fails. Relative links of all pages must lead somewhere, with their anchors. That the keys of TOML
// blocks are known to kurid is a test of internal/config.
package pages
