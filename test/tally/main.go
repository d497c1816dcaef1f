// Command tally makes the output of `go test -json` readable and counts it.
//
//	go test -json ./... | tally -record FILE    prints a line for each package, all of what a failed test said and the
//	                                            reason of each test that was skipped; writes its three counts to FILE
//	tally -total FILE...                        adds up such files and prints "N passed, N failed, N skipped"
//
// It exits 1 when a test or a package failed, or when none was run. Tests are counted as go test names them: a test and
// each of its subtests are one each. A package that fails to build or ends outside its tests counts as one failure.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() {
	record := flag.String("record", "", "read `go test -json` from standard input and write its counts to this `file`")
	total := flag.Bool("total", false, "add up the files named by the arguments")
	flag.Parse()

	var sum counts
	var err error
	switch {
	case *total:
		sum, err = add(flag.Args())
		if err == nil {
			fmt.Println(sum)
		}
	case *record != "":
		sum, err = read(os.Stdin, os.Stdout)
		if err == nil {
			err = os.WriteFile(*record, []byte(sum.String()+"\n"), 0o644)
		}
	default:
		flag.Usage()
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tally:", err)
		os.Exit(1)
	}
	if sum.passed == 0 && sum.failed == 0 {
		fmt.Fprintln(os.Stderr, "tally: no test was run")
		os.Exit(1)
	}
	if sum.failed > 0 {
		os.Exit(1)
	}
}

// counts are numbers of tests, subtests included.
type counts struct{ passed, failed, skipped int }

func (c counts) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", c.passed, c.failed, c.skipped)
}

func add(files []string) (counts, error) {
	var sum counts
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return sum, err
		}
		var c counts
		if _, err := fmt.Sscanf(string(b), "%d passed, %d failed, %d skipped", &c.passed, &c.failed, &c.skipped); err != nil {
			return sum, fmt.Errorf("read counts of %s: %w", f, err)
		}
		sum.passed += c.passed
		sum.failed += c.failed
		sum.skipped += c.skipped
	}
	return sum, nil
}

// event is a line of `go test -json`; see `go doc test2json`.
type event struct {
	Action, Package, ImportPath, Test, Output string
	Elapsed                                   float64
	FailedBuild                               string
}

// run is what is known of one test, or with no test name of one package, while it runs.
type run struct {
	output    []string
	hasFailed bool // a test of this package has failed, so the package's own failure says nothing new
}

// read consumes events until in ends, printing to out.
func read(in io.Reader, out io.Writer) (counts, error) {
	var sum counts
	runs := map[string]*run{}
	at := func(key string) *run {
		if runs[key] == nil {
			runs[key] = &run{}
		}
		return runs[key]
	}

	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if err == io.EOF && line == "" {
			return sum, nil
		}
		if err != nil && err != io.EOF {
			return sum, err
		}
		var e event
		if json.Unmarshal([]byte(line), &e) != nil {
			fmt.Fprint(out, line) // not an event: the go command's own words
			continue
		}
		pkg, key := at(e.Package), e.Package+" "+e.Test
		switch e.Action {
		case "output", "build-output":
			at(key).output = append(at(key).output, e.Output)
			if e.Action == "build-output" {
				fmt.Fprint(out, e.Output)
			}
		case "pass":
			if e.Test == "" {
				fmt.Fprintf(out, "ok    %s %.1fs\n", e.Package, e.Elapsed)
			} else {
				sum.passed++
			}
			delete(runs, key)
		case "skip":
			if e.Test != "" {
				sum.skipped++
				fmt.Fprintf(out, "SKIP  %s %s: %s\n", e.Package, e.Test, reason(at(key).output))
			}
			delete(runs, key)
		case "fail":
			if e.Test == "" && pkg.hasFailed {
				fmt.Fprintf(out, "FAIL  %s %.1fs\n", e.Package, e.Elapsed)
				continue
			}
			pkg.hasFailed = true
			sum.failed++
			fmt.Fprintf(out, "FAIL  %s %s\n%s", e.Package, e.Test, strings.Join(at(key).output, ""))
			delete(runs, key)
		}
	}
}

// reason returns what a skipped test said, on one line.
func reason(output []string) string {
	var words []string
	for _, l := range output {
		l = strings.TrimSpace(l)
		if l == "" || strings.HasPrefix(l, "=== ") || strings.HasPrefix(l, "--- ") {
			continue
		}
		words = append(words, l)
	}
	return strings.Join(words, " ")
}
