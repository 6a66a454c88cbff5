package apitoken_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What keeps the rooms apart: nothing behind the root knows it, and no part of a service holds the service.
func TestTheHouse(t *testing.T) {
	t.Parallel()
	// Nothing under internal/ imports the root, or a package that stands on it.
	ground := regexp.MustCompile(`^apitoken/(internal|store|event|feed|keyhash|profile)(/|$)`)
	parse := func(name string) *ast.File {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		require.NoError(t, err)
		return f
	}
	require.NoError(t, filepath.WalkDir("internal", func(name string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(name, ".go") {
			for _, x := range parse(name).Imports {
				p, _ := strings.CutPrefix(strings.Trim(x.Path.Value, `"`), "github.com/apitoken-go/")
				require.True(t, !strings.HasPrefix(p, "apitoken") || ground.MatchString(p), "%s imports %s, which stands on the root", name, p)
			}
		}
		return err
	}))
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		ast.Inspect(parse(name), func(n ast.Node) bool {
			s, ok := n.(*ast.StructType)
			if !ok {
				return true
			}
			for _, x := range s.Fields.List {
				if p, ok := x.Type.(*ast.StarExpr); ok {
					id, ok := p.X.(*ast.Ident)
					require.False(t, ok && id.Name == "Service", "%s: a struct holds *Service", name)
				}
			}
			return true
		})
	}
	// Whatever leads into the ring gives out errors of this package. (Reading its keys never fails.)
	for _, d := range parse("signingkeys.go").Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Type.Results == nil || fn.Recv == nil {
			continue
		}
		fails, inside, ours := false, false, false
		for _, r := range fn.Type.Results.List {
			if id, ok := r.Type.(*ast.Ident); ok && id.Name == "error" {
				fails = true
			}
		}
		ast.Inspect(fn, func(n ast.Node) bool {
			switch x := n.(type) {
			case *ast.SelectorExpr:
				inside = inside || x.Sel.Name == "ring"
			case *ast.Ident:
				ours = ours || x.Name == "public"
			}
			return true
		})
		require.False(t, fails && inside && !ours && fn.Name.Name != "JWKS" && fn.Name.Name != "Keyfunc", "%s gives out an error of a package behind this one", fn.Name.Name)
	}
}
