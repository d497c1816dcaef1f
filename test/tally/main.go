// Command tally makes the output of `go test -json` readable and counts it.
//
//	go test -json ./... | tally -record FILE    prints a line for each package, the full output of failed tests and the
//	                                            reason of each skipped test; writes its counts to FILE
//	… -failed LIST                              writes the tests that may be retried to LIST, one per line as
//	                                            "PACKAGE TEST FAILURES" (subtests counted). Writes none if a package
//	                                            failed otherwise than by its tests, or if more than two tests failed
//	tally -flaky -record FILE PACKAGE TEST FAILURES
//	                                            reports that the test passed when retried, and counts it in FILE
//	tally -total FILE...                        adds up such files and prints "N passed, N failed, N skipped"
//
// It exits with 1 if a test or a package failed, or if none was run. Tests are counted as go test
// names them: a test and each of its subtests count one each. A package that fails to build or
// exits outside its tests counts as one failure.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

func main() {
	record := flag.String("record", "", "read `go test -json` from standard input and write its counts to this `file`")
	failed := flag.String("failed", "", "write the tests that may be tried again to this `file`")
	flaky := flag.Bool("flaky", false, "count the test named by the arguments, which had failed, as passed and flaky")
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
	case *flaky && *record != "" && flag.NArg() == 3:
		var n int
		if n, err = strconv.Atoi(flag.Arg(2)); err != nil {
			break
		}
		if sum, err = add([]string{*record}); err == nil {
			fmt.Printf("FLAKY %s %s: failed, and passed when it was tried again: a fault to be mended\n", flag.Arg(0),
				flag.Arg(1))
			sum.failed, sum.passed, sum.flaky = sum.failed-n, sum.passed+n, sum.flaky+1
			err = os.WriteFile(*record, []byte(sum.String()+"\n"), 0o644)
		}
	case *record != "":
		var again []string
		sum, again, err = read(os.Stdin, os.Stdout)
		if err == nil {
			err = os.WriteFile(*record, []byte(sum.String()+"\n"), 0o644)
		}
		if err == nil && *failed != "" {
			err = os.WriteFile(*failed, []byte(strings.Join(again, "")), 0o644)
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
type counts struct{ passed, failed, skipped, flaky int }

func (c counts) String() string {
	s := fmt.Sprintf("%d passed, %d failed, %d skipped", c.passed, c.failed, c.skipped)
	if c.flaky > 0 {
		s += fmt.Sprintf(", %d flaky", c.flaky)
	}
	return s
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
		fmt.Sscanf(string(b), c.String()+", %d flaky", &c.flaky)
		sum.flaky += c.flaky
	}
	return sum, nil
}

// event is a line of `go test -json`; see `go doc test2json`.
type event struct {
	Action, Package, ImportPath, Test, Output string
	Elapsed                                   float64
	FailedBuild                               string
}

// run is the state of a running test, or of a package if the test name is empty.
type run struct {
	output    []string
	hasFailed bool // a test of this package has failed, so the package's own failure adds no information
	hasEnded  bool // its test program has reached its end and printed FAIL: every test was run
}

// most is the maximum number of failed tests of a run that may be retried.
const most = 2

// read consumes events until in ends, printing to out. again has the failed tests, without
// subtests, if they are few and nothing else failed.
func read(in io.Reader, out io.Writer) (sum counts, again []string, err error) {
	failures := map[string]int{} // by package and test, its subtests included
	otherwise := false           // a failure outside of tests, or a test that ended its program
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
			if otherwise || len(again) > most {
				again = nil
			}
			return sum, again, nil
		}
		if err != nil && err != io.EOF {
			return sum, nil, err
		}
		var e event
		if json.Unmarshal([]byte(line), &e) != nil {
			fmt.Fprint(out, line) // not an event: output of the go command itself
			continue
		}
		pkg, key := at(e.Package), e.Package+" "+e.Test
		switch e.Action {
		case "output", "build-output":
			at(key).output = append(at(key).output, e.Output)
			if e.Test == "" && e.Output == "FAIL\n" {
				pkg.hasEnded = true
			}
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
			otherwise = otherwise || e.Test == "" && !(pkg.hasFailed && pkg.hasEnded)
			if top, _, isPart := strings.Cut(e.Test, "/"); top != "" {
				failures[e.Package+" "+top]++
				if !isPart {
					again = append(again, fmt.Sprintf("%s %s %d\n", e.Package, top, failures[e.Package+" "+top]))
				}
			}
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

// reason returns the output of a skipped test on one line.
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
