package main

import (
	"go/ast"
	"go/token"
	"go/types"
	"slices"
	"strings"

	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/analysis/passes/inspect"
	"golang.org/x/tools/go/ast/inspector"
)

// docComments reports exported names without a doc comment. It skips tests, and methods that their interface documents.
// (staticcheck checks the form of doc comments but not their presence.)
var docComments = &analysis.Analyzer{
	Name: "doccomments", Doc: "report exported names without a doc comment",
	Run: func(pass *analysis.Pass) (any, error) {
		check := func(name *ast.Ident, docs ...*ast.CommentGroup) {
			if name.IsExported() && !slices.ContainsFunc(docs, func(d *ast.CommentGroup) bool { return d != nil }) {
				pass.Reportf(name.Pos(), "exported %s has no doc comment", name.Name)
			}
		}
		for _, file := range pass.Files {
			if strings.HasSuffix(pass.Fset.Position(file.Pos()).Filename, "_test.go") {
				continue
			}
			for _, decl := range file.Decls {
				switch d := decl.(type) {
				case *ast.FuncDecl:
					if d.Recv == nil || ast.IsExported(receiver(d)) && !slices.Contains([]string{"Error", "Read", "ServeHTTP", "String", "Unwrap", "Write"}, d.Name.Name) {
						check(d.Name, d.Doc)
					}
				case *ast.GenDecl:
					for _, spec := range d.Specs {
						switch s := spec.(type) {
						case *ast.TypeSpec:
							check(s.Name, d.Doc, s.Doc)
						case *ast.ValueSpec:
							check(s.Names[0], d.Doc, s.Doc, s.Comment)
						}
					}
				}
			}
		}
		return nil, nil
	},
}

// receiver returns the name of the type that d is a method of.
func receiver(d *ast.FuncDecl) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(types.ExprString(d.Recv.List[0].Type), "*"), "[")
	return name
}

// errorsIs reports comparisons and type assertions of errors that miss wrapped errors. It allows comparisons with io.EOF, because
// readers must return io.EOF itself: a wrapped io.EOF is not the end of the data.
var errorsIs = &analysis.Analyzer{
	Name: "errorsis", Doc: "report comparisons of errors that miss wrapped errors",
	Requires: []*analysis.Analyzer{inspect.Analyzer},
	Run: func(pass *analysis.Pass) (any, error) {
		isError := func(e ast.Expr) bool {
			t := pass.TypesInfo.TypeOf(e)
			return t != nil && types.Identical(t, types.Universe.Lookup("error").Type()) && types.ExprString(e) != "io.EOF"
		}
		nodes := pass.ResultOf[inspect.Analyzer].(*inspector.Inspector)
		for n := range nodes.PreorderSeq(new(ast.BinaryExpr), new(ast.SwitchStmt), new(ast.TypeAssertExpr)) {
			var found bool
			switch n := n.(type) {
			case *ast.BinaryExpr:
				found = (n.Op == token.EQL || n.Op == token.NEQ) && isError(n.X) && isError(n.Y)
			case *ast.SwitchStmt:
				found = n.Tag != nil && isError(n.Tag) && slices.ContainsFunc(n.Body.List, func(c ast.Stmt) bool {
					return slices.ContainsFunc(c.(*ast.CaseClause).List, isError)
				})
			case *ast.TypeAssertExpr:
				found = isError(n.X)
			}
			if found {
				pass.Reportf(n.Pos(), "misses wrapped errors; use errors.Is or errors.As")
			}
		}
		return nil, nil
	},
}
