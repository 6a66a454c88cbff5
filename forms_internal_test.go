package apitoken

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	is "github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/apikey"
	"github.com/apitoken-go/apitoken/internal/clients"
	"github.com/apitoken-go/apitoken/internal/deliver"
	"github.com/apitoken-go/apitoken/internal/mover"
	"github.com/apitoken-go/apitoken/internal/namespace"
	"github.com/apitoken-go/apitoken/internal/note"
	"github.com/apitoken-go/apitoken/internal/once"
	"github.com/apitoken-go/apitoken/internal/quota"
	"github.com/apitoken-go/apitoken/internal/ratchet"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

var golden = flag.Bool("golden", false, "write the golden files of the stored forms anew")

// fill sets every member to something that tells: a form that loses one is found out.
func fill(v reflect.Value, n *int) {
	*n++
	switch x := v.Addr().Interface().(type) {
	case *ratchet.State:
		*n-- // no member itself: those that it has are the record's
	case *record.Ext:
		return // what a newer version writes there has a test of its own
	case *rules.Target:
		*x = rules.BySubject("al;ice").IssuedBefore(time.Unix(1_700_000_000, 0).UTC())
		return
	case *[]byte:
		*x = []byte{byte(*n), 2, 3}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.String:
		v.SetString("t" + string(rune('a'+*n%26)))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(1000 + *n))
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(1 + *n%200))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Slice:
		if v.Type().String() == "json.RawMessage" {
			v.SetBytes([]byte(`{"plan":"gold"}`))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fallthrough
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), n)
		}
	}
}

// goldenFile is what lies there, which data must be.
func goldenFile(t *testing.T, name string, data []byte) []byte {
	file := filepath.Join("testdata", "forms", name)
	if *golden {
		is.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		is.NoError(t, os.WriteFile(file, append(data, '\n'), 0o644))
	}
	want, err := os.ReadFile(file)
	is.NoError(t, err)
	is.Equal(t, strings.TrimSpace(string(want)), string(data), "the stored form changed: older processes may not read it")
	return want
}

func goldenForm[T any](t *testing.T, name string, f *record.Form[T], id string) {
	t.Run(name, func(t *testing.T) {
		v := new(T)
		n := 0
		fill(reflect.ValueOf(v).Elem(), &n)
		reflect.ValueOf(v).Elem().FieldByName("V").SetInt(1)
		if c, ok := any(v).(*clients.Record); ok {
			c.Keys = []byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`)
		}
		if q, ok := any(v).(*quota.Record); ok {
			q.IDs = []byte("sixteen bytes, 1sixteen bytes, 2")
		}
		w, err := f.Write(store.Record{ID: id}, v)
		is.NoError(t, err)
		data, err := json.Marshal(v)
		is.NoError(t, err)
		want := goldenFile(t, name+".json", data)
		if f.Pack == nil {
			is.Equal(t, string(data), string(w.Record().Data))
		} else {
			text := goldenFile(t, name+".packed", []byte(hex.EncodeToString(w.Record().Data)))
			stored, err := hex.DecodeString(strings.TrimSpace(string(text)))
			is.NoError(t, err)
			x := new(T)
			is.NoError(t, f.Read(store.Record{ID: id, Data: stored}, x))
			is.Equal(t, v, x)
			for n := range stored {
				is.Error(t, f.Read(store.Record{ID: id, Data: stored[:n]}, new(T)), "cut after %d bytes", n)
			}
			is.Error(t, f.Read(store.Record{ID: id, Data: append(stored, 0)}, new(T)), "with something behind it")
		}
		back := new(T)
		is.NoError(t, f.Read(store.Record{ID: id, Data: want}, back))
		is.Equal(t, v, back)

		// What a newer version put into ext is kept when the record is rewritten.
		newer := strings.TrimSuffix(strings.TrimSpace(string(want)), "}") + `,"ext":{"a":[1,"\u003c"],"b":{}}}`
		is.NoError(t, f.Read(store.Record{ID: id, Data: []byte(newer)}, back))
		w, err = f.Write(store.Record{ID: id}, back)
		is.NoError(t, err)
		kept := new(T)
		is.NoError(t, f.Read(w.Record(), kept))
		data, err = json.Marshal(kept)
		is.NoError(t, err)
		is.JSONEq(t, newer, string(data))
		is.Error(t, f.Read(store.Record{ID: id, Data: []byte(`{"v":1,"ext":[]}`)}, new(T)))

		for _, bad := range []string{"", "null x", `{"v":2}`, `{"v":1,"later":true}`, string(want[:len(want)-3])} {
			if f.Check != nil || bad != `{"v":2}` {
				is.Error(t, f.Read(store.Record{ID: id, Data: []byte(bad)}, new(T)), bad)
			}
		}
	})
}

func TestStoredForms(t *testing.T) {
	goldenForm(t, "rule", &rules.RuleForm, "r")
	goldenForm(t, "grant", grantForm, "g")
	goldenForm(t, "ticket", ticketForm, "t")
	goldenForm(t, "note", &note.Form, "n")
	goldenForm(t, "client", &clients.ClientForm, "c")
	goldenForm(t, "apikey", &apikey.Form, "k")
	goldenForm(t, "role", roleForm, "admin")
	goldenForm(t, "meta", &namespace.MetaForm, "service")
	goldenForm(t, "once", &once.Form, "d")
	goldenForm(t, "use", &usage.UseForm, "u")
	goldenForm(t, "quota", &quota.Form, "q")
	goldenForm(t, "counting", &quota.CountingForm, "grant")
	goldenForm(t, "spent", &usage.SpentForm, "s")
	goldenForm(t, "cursor", &deliver.CursorForm, "sink")
	goldenForm(t, "copy", &mover.CopyForm, "copy")
	goldenForm(t, "moved", &namespace.MovedForm, "moved")
}

// Each form has a golden file. The name of its variable says which, or that of the package whose Form it is. It is made in one place:
// nowhere but in such a variable or function.
func TestEveryStoredFormHasAGoldenFile(t *testing.T) {
	t.Parallel()
	sources, err := filepath.Glob("*.go")
	is.NoError(t, err)
	behind, err := filepath.Glob("internal/*/*.go")
	is.NoError(t, err)
	made := func(n ast.Node) (found int) {
		ast.Inspect(n, func(n ast.Node) bool {
			if l, ok := n.(*ast.CompositeLit); ok {
				if x, ok := l.Type.(*ast.IndexExpr); ok {
					if s, ok := x.X.(*ast.SelectorExpr); ok && s.Sel.Name == "Form" {
						found++
					}
				}
			}
			return true
		})
		return found
	}
	var forms, files []string
	for _, name := range append(sources, behind...) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		is.NoError(t, err)
		named := 0
		for _, d := range f.Decls {
			var all []string
			switch d := d.(type) {
			case *ast.FuncDecl:
				if made(d) == 1 && d.Recv == nil {
					all = append(all, d.Name.Name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if v, ok := spec.(*ast.ValueSpec); ok && len(v.Names) == 1 && made(v) == 1 {
						all = append(all, v.Names[0].Name)
					}
				}
			}
			for _, form := range all {
				if stem, ok := strings.CutSuffix(form, "Form"); ok {
					named++
					forms = append(forms, cmp.Or(strings.ToLower(stem), filepath.Base(filepath.Dir(name))))
				}
			}
		}
		is.Equal(t, made(f), named, "%s makes a form that has no name of its own", name)
	}
	golden, err := filepath.Glob("testdata/forms/*.json")
	is.NoError(t, err)
	for _, name := range golden {
		files = append(files, strings.TrimSuffix(filepath.Base(name), ".json"))
	}
	is.ElementsMatch(t, files, forms)
}

// A role that an operator changes keeps what a newer version wrote of it.
func TestARewriteKeepsNewerMembers(t *testing.T) {
	t.Parallel()
	st := memstore.New()
	svc, err := New(Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, InsecureKeysInStore: true})
	is.NoError(t, err)
	defer svc.Close()
	is.NoError(t, svc.SetRole(t.Context(), "clerk", Scopes{"a"}))
	r, err := st.Get(t.Context(), store.KindRole, "clerk")
	is.NoError(t, err)
	version := r.Version
	r.Data = []byte(`{"v":1,"scopes":["a"],"ext":{"shown":"Clerk"}}`)
	_, err = st.Apply(t.Context(), &store.Change{ID: store.Version{1}, Puts: []store.Put{{Record: r, Expect: version}}})
	is.NoError(t, err)
	is.NoError(t, svc.SetRole(t.Context(), "clerk", Scopes{"a", "b"}))
	r, err = st.Get(t.Context(), store.KindRole, "clerk")
	is.NoError(t, err)
	is.JSONEq(t, `{"v":1,"scopes":["a","b"],"ext":{"shown":"Clerk"}}`, string(r.Data))
}

// A record that nobody can read keeps what it concerns from being used, and nothing else from going on.
func TestUnreadableRecordsAreSetAside(t *testing.T) {
	t.Parallel()
	b := rules.NewBook(rules.LocalKeyer())
	alice := &rules.Subject{Subject: "alice", Pos: rules.Positions{Birth: store.Position{N: 5}, View: store.Position{N: 5}}}
	bob := &rules.Subject{Subject: "bob", Pos: alice.Pos}
	r := store.Record{Kind: store.KindRule, ID: "r", Type: "subject", Subject: "alice", Data: []byte(`{"v":9}`), Pos: store.Position{N: 7}}
	is.Error(t, b.ApplyRecord(r))
	is.True(t, b.SetAside(r))
	is.Equal(t, "subject", b.Hit(alice))
	is.Empty(t, b.Hit(bob))
	is.False(t, b.SetAside(store.Record{Type: "signingkey"}))
}

// Nothing is stamped with a place that is later than what was looked at: the position is taken in one file. The others compare it.
func TestThePositionIsTakenInOnePlace(t *testing.T) {
	t.Parallel()
	may := map[string]string{
		"core.go": "takes it", "adapter.go": "compares", "service.go": "asks for the history", "internal/keyring/ring.go": "compares",
		"internal/issuers/standing.go": "compares", "internal/feedlog/feedlog.go": "reads the store as far as that",
	}
	files, err := filepath.Glob("*.go")
	is.NoError(t, err)
	behind, err := filepath.Glob("internal/*/*.go")
	is.NoError(t, err)
	is.NotEmpty(t, behind)
	for _, name := range append(files, behind...) {
		name = filepath.ToSlash(name)
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		is.NoError(t, err)
		takes := false
		ast.Inspect(f, func(n ast.Node) bool {
			if x, ok := n.(*ast.SelectorExpr); ok && x.Sel.Name == "Position" {
				takes = takes || ofState(x.X)
			}
			return true
		})
		is.Equal(t, may[name] != "", takes, "%s takes a position: %s", name, may[name])
	}
}

// ofState reports whether x is a service's follower, and no package that has a type of the name Position.
func ofState(x ast.Expr) bool {
	s, ok := x.(*ast.SelectorExpr)
	return ok && (s.Sel.Name == "state" || s.Sel.Name == "State")
}

// BenchmarkReadGrant is what a refresh reads, in the compact form and as JSON, as earlier versions wrote it.
func BenchmarkReadGrant(b *testing.B) {
	g := &grantRecord{V: 1, Subject: "user-0001234", Client: "first-party", Scopes: Scopes{"orders:read", "orders:write"}, Audiences: []string{"https://api.example.com"},
		Birth: store.Position{History: 1 << 60, N: 117697455768272895}, Created: 1_800_000_000_000, Expires: 1_801_000_000_000, Idle: 1e8, Life: 900,
		Refreshed: 1_800_000_000_000, State: ratchet.State{Seq: 7}, JTI: "01k6z0000000000000000000aa", IAT: 1_800_000_000_000, EXP: 1_800_000_900_000,
		Narrow: Scopes{"orders:read", "orders:write"}, Address: "203.0.113.7", UserAgent: "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"}
	w, err := grantForm.Write(store.Record{ID: "g"}, g)
	is.NoError(b, err)
	text, err := json.Marshal(g)
	is.NoError(b, err)
	for _, x := range []struct {
		name string
		data []byte
	}{{"compact", w.Record().Data}, {"json", text}} {
		b.Run(x.name, func(b *testing.B) {
			b.ReportAllocs()
			r := store.Record{ID: "g", Data: x.data}
			for b.Loop() {
				_, _ = readGrant(r)
			}
			b.ReportMetric(float64(len(x.data)), "B/record")
		})
	}
}
