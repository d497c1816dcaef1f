// Command lint checks what go vet and staticcheck do not: errors that are ignored (errcheck), compared or asserted
// without errors.Is and errors.As (errorlint), HTTP bodies that are not closed (bodyclose), and log calls (sloglint).
//
// `make lint` runs it as `go vet -vettool`, which caches the results of each package. It is a module of its own so
// that its dependencies stay out of Kuri's go.mod. It has the four analyzers that golangci-lint would run, with 190
// packages to build instead of 1,200.
package main

import (
	"go/ast"
	"go/token"
	"regexp"
	"slices"
	"strings"

	"github.com/kisielk/errcheck/errcheck"
	"github.com/polyfloyd/go-errorlint/errorlint"
	"github.com/timakin/bodyclose/passes/bodyclose"
	"go-simpler.org/sloglint"
	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/analysis/unitchecker"
)

func main() {
	unitchecker.Main(
		uncheckedErrors(),
		errorlint.NewAnalyzer(),
		bodyclose.Analyzer,
		sloglint.New(&sloglint.Options{NoMixedArguments: true, KeyNamingCase: "snake"}),
	)
}

// ignorable are functions whose errors may be ignored without a word. Closing a file that was written is checked by
// review. Removing is undoing, and setting a deadline or signalling a process fails only if there is nothing left to
// interrupt. fault.Contained logs the error itself.
var ignorable = regexp.MustCompile(`^(Close(WithError)?|Fprint(f|ln)?|Remove(All)?|Unlink(at)?|Rmdir|Unmount|Set(Read|Write)?Deadline|Kill|Signal|Contained)$`)

// neverDeferred are functions whose errors must not be ignored even if the call is deferred. Other
// deferred calls are undos.
var neverDeferred = regexp.MustCompile(`^(Write.*|Flush|Sync|Encode|Commit)$`)

// uncheckedErrors returns errcheck for the product: without tests, ignorable functions and deferred undos. An error
// that is ignored on purpose is assigned to `_`.
func uncheckedErrors() *analysis.Analyzer {
	a := *errcheck.Analyzer
	a.Run = func(pass *analysis.Pass) (any, error) {
		found := map[token.Pos]analysis.Diagnostic{}
		inner := *pass
		inner.Report = func(d analysis.Diagnostic) { found[d.Pos] = d }
		result, err := errcheck.Analyzer.Run(&inner)
		for _, f := range pass.Files {
			if ofTests(pass, f) {
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				call, deferred := statement(n)
				if call == nil {
					return true
				}
				d, unchecked := found[call.Lparen]
				if name := nameOf(call); unchecked && !ignorable.MatchString(name) &&
					(!deferred || neverDeferred.MatchString(name)) {
					pass.Report(d)
				}
				return true
			})
		}
		return result, err
	}
	return &a
}

// ofTests reports whether a file belongs to tests or benchmarks.
func ofTests(pass *analysis.Pass, f *ast.File) bool {
	path := strings.Split(pass.Pkg.Path(), "/")
	return strings.HasSuffix(pass.Fset.Position(f.Pos()).Filename, "_test.go") ||
		slices.Contains(path, "test") || slices.Contains(path, "bench")
}

// statement returns the call that is a statement of its own, or nil.
func statement(n ast.Node) (call *ast.CallExpr, deferred bool) {
	switch s := n.(type) {
	case *ast.ExprStmt:
		call, _ = s.X.(*ast.CallExpr)
	case *ast.GoStmt:
		call = s.Call
	case *ast.DeferStmt:
		call, deferred = s.Call, true
	}
	return call, deferred
}

// nameOf returns the name of the called function or method, or "".
func nameOf(call *ast.CallExpr) string {
	switch fun := ast.Unparen(call.Fun).(type) {
	case *ast.Ident:
		return fun.Name
	case *ast.SelectorExpr:
		return fun.Sel.Name
	}
	return ""
}
