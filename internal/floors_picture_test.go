package internal_test

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const picturePage = "../docs/architecture.md"

// picture draws the tables of floors_test.go: the packages of each floor, and the imports within it with their reasons.
func picture() string {
	var b strings.Builder
	for floor := slices.Max(slices.Collect(maps.Values(floors))); floor >= 0; floor-- {
		var rooms, within []string
		for _, name := range slices.Sorted(maps.Keys(floors)) {
			if floors[name] == floor {
				rooms = append(rooms, name)
			}
		}
		for _, pair := range slices.Sorted(maps.Keys(neighbours)) {
			from, to, _ := strings.Cut(pair, " ")
			if floors[from] == floor {
				within = append(within, fmt.Sprintf("%9s%s -> %s: %s\n", "", from, to, neighbours[pair]))
			}
		}
		line := fmt.Sprintf("floor %d ", floor)
		for _, room := range rooms {
			if len(line)+len(room)+2 > 100 {
				b.WriteString(line + "\n")
				line = strings.Repeat(" ", len("floor 4 "))
			}
			line += " " + room
		}
		b.WriteString(line + "\n" + strings.Join(within, ""))
		for _, room := range rooms {
			b.WriteString(inside(room))
		}
	}
	return b.String()
}

// inside draws the floors within a room, in one line; "" for a room without any.
func inside(room string) string {
	if _, listed := insideFloors[room]; !listed {
		return ""
	}
	var floors []string
	for floor := slices.Max(slices.Collect(maps.Values(insideFloors))); floor >= 0; floor-- {
		var names []string
		for _, name := range slices.Sorted(maps.Keys(insideFloors)) {
			if first, _, _ := strings.Cut(name, "/"); first == room && insideFloors[name] == floor {
				names = append(names, name)
			}
		}
		if len(names) > 0 {
			floors = append(floors, strings.Join(names, " "))
		}
	}
	return fmt.Sprintf("%9s%s has floors of its own:\n%11s%s\n", "", room, "",
		strings.Join(floors, fmt.Sprintf("\n%11s", "")))
}

// TestPicture compares the picture of docs/architecture.md with the tables. With KURI_GENERATE set
// it writes it: make generate.
func TestPicture(t *testing.T) {
	body, err := os.ReadFile(picturePage)
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```\nfloor 4.*?```")
	if len(block.FindAll(body, -1)) != 1 {
		t.Fatalf("%s has not one block that begins with \"floor 4\"", picturePage)
	}
	want := block.ReplaceAllLiteralString(string(body), "```\n"+picture()+"```")
	if want == string(body) {
		return
	}
	if os.Getenv("KURI_GENERATE") == "" {
		t.Fatalf("the floors of %s are not those of floors_test.go: run make generate", picturePage)
	}
	if err := os.WriteFile(picturePage, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}
