package httpauth

import (
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/bodytime"
)

// Routes says what each route of a program requires. Keys are patterns of [http.ServeMux].
type Routes map[string]apitoken.Requirement

// Routes guards a whole router by a table: what matches no pattern is refused, and so is a path that is not clean, so that
// no router behind can read it in another way: "//", "/../", ";" and their encoded forms answer 400. What no pattern names
// answers 404, another method 405, before any token is looked at. CORS preflights carry no token: put what answers
// them in front. It panics as ServeMux does on conflicting patterns.
func (a *Auth) Routes(table Routes) func(http.Handler) http.Handler { return a.routes(table, a.guard) }

func (a *Auth) routes(table Routes, guard func(apitoken.Requirement) func(http.Handler) http.Handler) func(http.Handler) http.Handler {
	mux := http.NewServeMux()
	for pattern := range table {
		mux.Handle(pattern, row{})
	}
	return func(next http.Handler) http.Handler {
		guarded := make(map[string]http.Handler, len(table))
		for pattern, q := range table {
			guarded[pattern] = guard(q)(next)
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !canonical(r) {
				a.Error(w, r, malformed("the path is not canonical"))
				return
			}
			h, pattern := mux.Handler(r)
			if _, ok := h.(row); !ok {
				a.nowhere(w, r, h)
				return
			}
			// Not by way of the mux, whose pattern and path values would get into the request of the router behind.
			guarded[pattern].ServeHTTP(w, r)
		})
	}
}

// row tells a row of the table from what the mux answers by itself: 404, 405, a redirect. It is never served.
type row struct{}

func (row) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
}

// Route is one row of Mux.
type Route struct {
	Needs   apitoken.Requirement // the zero one refuses everybody
	Handler http.Handler
}

// Mux makes a ServeMux out of a table whose rows have their handlers: the table is the router, so that the two cannot
// disagree. It panics as ServeMux does on conflicting patterns.
func (a *Auth) Mux(table map[string]Route) *http.ServeMux { return serveMux(table, a.guard) }

func serveMux(table map[string]Route, guard func(apitoken.Requirement) func(http.Handler) http.Handler) *http.ServeMux {
	mux := http.NewServeMux()
	for pattern, route := range table {
		if route.Handler == nil {
			panic("httpauth: " + pattern + " has no handler")
		}
		mux.Handle(pattern, guard(route.Needs)(route.Handler))
	}
	return mux
}

// canonical refuses paths that two routers may read in two ways.
func canonical(r *http.Request) bool {
	path := r.URL.Path
	if path == "" || path[0] != '/' || r.Method == http.MethodConnect || !utf8.ValidString(path) {
		return false // also "*", an authority, an opaque URL; and bytes that some read as an overlong "/"
	}
	for i := range len(path) {
		if c := path[i]; c < 0x20 || c == 0x7f || c == '\\' || c == ';' {
			return false
		}
	}
	if strings.Contains(path, "//") || strings.Contains(path, "/./") || strings.Contains(path, "/../") || strings.HasSuffix(path, "/.") || strings.HasSuffix(path, "/..") {
		return false
	}
	raw := r.URL.EscapedPath()
	if strings.IndexByte(raw, '%') < 0 {
		return true
	}
	raw = strings.ToLower(raw)
	for _, bad := range [...]string{"%2f", "%2e", "%5c", "%3b", "%25", "%00"} {
		if strings.Contains(raw, bad) {
			return false
		}
	}
	return true
}

// nowhere answers for a path that the table does not name: 404, or 405 with Allow, as the mux would.
func (a *Auth) nowhere(w http.ResponseWriter, r *http.Request, h http.Handler) {
	bodytime.Refused(w, r)
	probe := &statusOnly{h: http.Header{}}
	h.ServeHTTP(probe, r)
	v := verdict{status: http.StatusNotFound, code: "not_found", description: "There is no such route."}
	if probe.status == http.StatusMethodNotAllowed {
		v = verdict{status: probe.status, code: "method_not_allowed", description: "The route does not take this method."}
		w.Header()["Allow"] = probe.h["Allow"]
	}
	if a.o.OnRefuse != nil {
		a.o.OnRefuse(a.redacted(r), &apitoken.Error{Code: apitoken.ErrNotFound, Detail: "no route"})
	}
	writeProblem(w, r, problem{Type: "about:blank", Title: http.StatusText(v.status), Status: v.status, Detail: v.description, Error: v.code})
}

// statusOnly learns what a handler would answer.
type statusOnly struct {
	h      http.Header
	status int
}

func (s *statusOnly) Header() http.Header { return s.h }
func (s *statusOnly) WriteHeader(n int) {
	if s.status == 0 {
		s.status = n
	}
}
func (s *statusOnly) Write(b []byte) (int, error) {
	s.WriteHeader(http.StatusOK)
	return len(b), nil
}
