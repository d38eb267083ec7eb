// Command lint runs the analyzers of go vet, go fix (modernize) and staticcheck, and a few others.
//
// To suppress a finding, write //lint:ignore CHECK REASON in the line above. The reason is mandatory, and lint reports
// directives that suppress nothing.
package main

import (
	"os"
	"slices"

	"github.com/kisielk/errcheck/errcheck"
	"github.com/sonatard/noctx"
	"github.com/timakin/bodyclose/passes/bodyclose"
	"go-simpler.org/sloglint"
	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/analysis/passes/modernize"
	"golang.org/x/tools/go/analysis/suite/vet"
	"honnef.co/go/tools/lintcmd"
	"honnef.co/go/tools/simple"
	"honnef.co/go/tools/staticcheck"
	"honnef.co/go/tools/stylecheck"
	"honnef.co/go/tools/unused"
)

func main() {
	// The errors of these functions are rarely useful.
	errcheck.DefaultExcludedSymbols = append(errcheck.DefaultExcludedSymbols, "fmt.Fprint", "fmt.Fprintf", "fmt.Fprintln", "os.RemoveAll",
		"(io.Closer).Close", "(*os.File).Close", "(net.Conn).Close", "(*net.TCPConn).Close", "(net.Listener).Close", "(*net/http.Server).Close",
		"(*debug/elf.File).Close")
	cmd := lintcmd.NewCommand("lint")
	cmd.ParseFlags(slices.Insert(os.Args[1:], 0, "-checks=all"))
	cmd.AddAnalyzers(slices.Concat(simple.Analyzers, staticcheck.Analyzers, stylecheck.Analyzers)...)
	cmd.AddAnalyzers(unused.Analyzer)
	for _, a := range slices.Concat(vet.Suite, modernize.Suite, []*analysis.Analyzer{
		bodyclose.Analyzer, errcheck.Analyzer, noctx.Analyzer, sloglint.New(&sloglint.Options{StaticMessage: true, NoMixedArguments: true}),
		docComments, errorsIs,
	}) {
		run := a.Run
		a.Run = func(pass *analysis.Pass) (any, error) {
			pass.Module = &analysis.Module{} // sloglint expects it; lintcmd does not set it
			return run(pass)
		}
		cmd.AddBareAnalyzers(a)
	}
	cmd.Run()
}
