package operate

import (
	"context"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
)

// calls are the calls that the Go files below a directory make on a service, such as "Clients.Get", by file.
func calls(t *testing.T, dir string) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	require.NoError(t, filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && name != dir {
			return cmpOr(err, fs.SkipDir)
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		require.NoError(t, err)
		inner := map[*ast.SelectorExpr]bool{}
		ast.Inspect(f, func(n ast.Node) bool {
			x, ok := n.(*ast.SelectorExpr)
			if !ok || inner[x] {
				return true
			}
			var parts []string
			for e := ast.Expr(x); e != nil; {
				switch y := e.(type) {
				case *ast.SelectorExpr:
					inner[y] = true
					parts, e = append([]string{y.Sel.Name}, parts...), y.X
				case *ast.Ident:
					parts, e = append([]string{y.Name}, parts...), nil
				case *ast.CallExpr: // svc.Adapter().Now is the call Adapter.Now
					if e = nil; len(y.Args) == 0 {
						if f, ok := y.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "Adapter" {
							e = f
						}
					}
				default:
					e = nil
				}
			}
			for i, p := range parts {
				if p == "svc" && i+1 < len(parts) {
					out[filepath.Base(name)] = append(out[filepath.Base(name)], strings.Join(parts[i+1:], "."))
				}
			}
			return true
		})
		return nil
	}))
	return out
}

func cmpOr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// TestEachOperationIsThereOnce: neither the admin API nor the console's pages for operators call the service themselves. What users
// do on their own pages (keys.go, sessions.go) is theirs: it goes through APIKeys.For and Target.OwnedBy.
func TestEachOperationIsThereOnce(t *testing.T) {
	t.Parallel()
	memory := map[string]bool{"Adapter": true, "Adapter.Now": true, "Settings": true, "Freshness": true, "Observe": true}
	seen := map[string]string{}
	for file, list := range calls(t, ".") {
		for _, call := range list {
			// A look-up that a change begins with is no operation of its own.
			if memory[call] || call == "Clients.Get" || call == "Grants" {
				continue
			}
			require.Empty(t, seen[call], "%s and %s both have %s", seen[call], file, call)
			seen[call] = file
		}
	}
	require.Greater(t, len(seen), 25, "the test sees the calls")
	for _, dir := range []string{"../admin", "../console"} {
		for file, list := range calls(t, dir) {
			if file == "keys.go" || file == "sessions.go" {
				continue
			}
			for _, call := range list {
				require.True(t, memory[call], "%s/%s calls %s: it belongs here", dir, file, call)
			}
		}
	}
}

// TestWaitingEndsWithItsContext: also where a store ignores it.
func TestWaitingEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		turns, hang := newTurns(), make(chan struct{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for range cap(turns) {
			go func() {
				_, err := wait(ctx, turns, func(context.Context) (int, error) { <-hang; return 1, nil })
				require.ErrorIs(t, err, apitoken.ErrUnavailable)
			}()
		}
		synctest.Wait()
		_, err := wait(t.Context(), turns, func(context.Context) (int, error) { return 1, nil })
		require.ErrorIs(t, err, apitoken.ErrUnavailable, "every turn is taken: another call would hang too")
		n, err := wait(t.Context(), newTurns(), func(context.Context) (int, error) { return 1, nil })
		require.NoError(t, err, "those who change something have turns of their own")
		require.Equal(t, 1, n)
		time.Sleep(time.Second)
		synctest.Wait()
		close(hang)
		synctest.Wait()
		require.Empty(t, turns, "a turn ends with its call")
		require.PanicsWithValue(t, "a bug", func() { _, _ = wait(t.Context(), turns, func(context.Context) (int, error) { panic("a bug") }) })
	})
}

// TestAPageOfAListing: what can't be read is passed over, a store that fails is not taken for the end.
func TestAPageOfAListing(t *testing.T) {
	t.Parallel()
	damaged := &apitoken.Error{Code: apitoken.ErrUnavailable, Detail: "stored apikey b cannot be read"}
	down := &apitoken.Error{Code: apitoken.ErrUnavailable, RetryAfter: time.Second}
	list := func(items ...any) func(func(string, error) bool) {
		return func(yield func(string, error) bool) {
			for _, x := range items {
				s, _ := x.(string)
				err, _ := x.(error)
				if !yield(s, err) {
					return
				}
			}
		}
	}
	id := func(s string) string { return s }
	for name, x := range map[string]struct {
		list []any
		want Page[string]
		err  error
	}{
		"all":                {[]any{"a", "b"}, Page[string]{[]string{"a", "b"}, ""}, nil},
		"more":               {[]any{"a", "b", "c"}, Page[string]{[]string{"a", "b"}, "b"}, nil},
		"damaged":            {[]any{"a", damaged, "c", "d"}, Page[string]{[]string{"a", "c"}, "c"}, nil},
		"damaged at its end": {[]any{"a", damaged}, Page[string]{[]string{"a"}, ""}, nil},
		"down":               {[]any{"a", down}, Page[string]{}, apitoken.ErrUnavailable},
		"refused":            {[]any{"a", apitoken.ErrDenied}, Page[string]{}, apitoken.ErrDenied},
		"none":               {nil, Page[string]{}, nil},
	} {
		p, err := Collect(list(x.list...), 2, id)
		require.Equal(t, x.want, p, name)
		require.True(t, errors.Is(err, x.err), "%s: %v", name, err)
	}
}
