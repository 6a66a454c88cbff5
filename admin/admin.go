// Package admin lets operators look into a running token service and change it: JSON over HTTP, described by openapi.json,
// which the handler serves as well. Command apitoken speaks it.
//
// On the machine itself it is a Unix socket that only the owner of the process may open (mode 0600), with no other
// credential:
//
//	srv, err := admin.Serve(svc, "tokens.db"+admin.Suffix, admin.Options{Backup: st.Backup})
//	if err != nil { ... }
//	defer srv.Close()
//
// Over a network it is [Handler], on TLS, for callers whose API key or access token holds Options.Scope. Whoever holds that
// scope may do all that the service can, make API keys with any scope among it.
//
// Each change is written with the event that tells who asked for it: over TLS the subject of the caller's token, on the socket
// the name that the caller gives (see [Client.As]), since whoever may open it could as well write the store.
package admin

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/operate"
)

// Options configure Handler, Serve and Local.
type Options struct {
	// Scope is what a caller's token must hold, such as "operate": with it all is allowed, with "operate:read" to look, and with
	// "operate:write" to change. Handler requires it; on a socket it is not looked at.
	Scope apitoken.Scope
	// BehindTLS says that something in front of Handler ends TLS. Without it requests over plain HTTP are refused, as the
	// caller's token could be read on the way.
	BehindTLS bool
	// Backup writes a consistent copy of the store, as the method Backup of a boltstore.Store does. nil: backups are made by the
	// engine's own means, and a request for one answers 404.
	Backup func(ctx context.Context, w io.Writer) error
}

// Description is the OpenAPI 3.1 document of the API.
//
//go:embed openapi.json
var Description []byte

// Limits of requests.
const (
	maxBody  = 64 << 10
	maxText  = 8 << 20 // of what is searched for leaked credentials: 1 MiB, whose JSON may be six times as long
	opTime   = 30 * time.Second
	maxPage  = 500
	actorHdr = "Apitoken-Actor"
)

// Handler serves the API below /v1/ to callers whose bearer token or API key holds o.Scope. It fails where o would leave the API
// open.
func Handler(svc *apitoken.Service, o Options) (http.Handler, error) {
	if svc == nil {
		return nil, wrong("svc", "is nil")
	}
	if one, err := apitoken.ParseScopes(string(o.Scope)); err != nil || len(one) != 1 {
		return nil, wrong("Scope", "is required: what a caller's token must hold, such as operate")
	}
	auth := httpauth.New(svc, &httpauth.Options{Realm: "admin", StripCredential: true})
	mux := newAPI(svc, o).mux(func(x *operation, next http.Handler) http.Handler {
		need := o.Scope + ":read"
		if x.change {
			need = o.Scope + ":write"
		}
		return auth.Require(need)(next)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil && !o.BehindTLS {
			answerError(w, &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: "the admin API is not served over plain HTTP"})
			return
		}
		mux.ServeHTTP(w, r)
	}), nil
}

// open is the handler for callers who may do everything: those who may open the socket.
func open(svc *apitoken.Service, o Options) http.Handler {
	return newAPI(svc, o).mux(func(_ *operation, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx := apitoken.WithActor(r.Context(), actorOf(r.Header.Get(actorHdr)))
			ctx = apitoken.WithOrigin(ctx, apitoken.Origin{UserAgent: r.UserAgent()})
			next.ServeHTTP(w, r.WithContext(ctx))
		})
	})
}

// actorOf is the name by which a caller on the socket goes in events, cut to 128 bytes.
func actorOf(name string) string {
	clean := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return -1
		}
		return r
	}, name)
	for len(clean) > 128 {
		_, n := utf8.DecodeLastRuneInString(clean)
		clean = clean[:len(clean)-n]
	}
	if clean = strings.TrimSpace(clean); clean == "" {
		return "admin socket"
	}
	return clean
}

func wrong(field, why string) error {
	return &apitoken.ConfigError{Field: field, Err: &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: "admin: Options." + field + ": " + why}}
}

// api is what the operations work on.
type api struct {
	reader
	changer changer
}

// reader is what operations that look have, and changer those that change something.
type (
	reader struct {
		operate.Look
		o Options
	}
	changer struct{ operate.Act }
)

func newAPI(svc *apitoken.Service, o Options) *api {
	look, act := operate.New(svc)
	return &api{reader{look, o}, changer{act}}
}

// mux serves every operation behind guard.
func (a *api) mux(guard func(*operation, http.Handler) http.Handler) http.Handler {
	mux := http.NewServeMux()
	for i := range operations {
		x := &operations[i]
		mux.Handle(x.method+" "+x.path, guard(x, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { x.serve(a, w, r) })))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answerError(w, &apitoken.Error{Code: apitoken.ErrNotFound, Detail: "no such operation: " + r.Method + " " + r.URL.Path})
	})
	return mux
}

// operation is one row of the API: openapi.json is made of these.
type operation struct {
	method, path string
	about        string
	change       bool // needs Scope:write
	in, out      any  // zero values, for the description; a nil out is a stream of bytes
	serve        func(a *api, w http.ResponseWriter, r *http.Request)
}

// read makes an operation that looks, by GET with its input in the URL; or by POST where the input must not be in a URL.
func read[In, Out any](method, path, about string, f func(reader, context.Context, In) (Out, error)) operation {
	return newOperation(method, path, about, false, func(a *api, ctx context.Context, in In) (Out, error) { return f(a.reader, ctx, in) })
}

// change makes an operation that changes something.
func change[In, Out any](method, path, about string, f func(changer, context.Context, In) (Out, error)) operation {
	return newOperation(method, path, about, true, func(a *api, ctx context.Context, in In) (Out, error) { return f(a.changer, ctx, in) })
}

func newOperation[In, Out any](method, path, about string, change bool, f func(*api, context.Context, In) (Out, error)) operation {
	var in In
	var out Out
	return operation{method: method, path: path, about: about, change: change, in: in, out: out, serve: func(a *api, w http.ResponseWriter, r *http.Request) {
		var in In
		if err := decode(w, r, path, &in); err != nil {
			answerError(w, &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: err.Error()})
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), opTime)
		defer cancel()
		out, err := f(a, ctx, in)
		if err != nil {
			answerError(w, err)
			return
		}
		answer(w, http.StatusOK, out)
	}}
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the caller is gone: nobody to tell
}

// Problem is the body of an answer that is no success.
type Problem struct {
	Error      string `json:"error"`                         // the class, such as "not_found"
	Detail     string `json:"detail"`                        // for people
	RetryAfter int64  `json:"retry_after_seconds,omitempty"` // with "unavailable" and "limited"
}

// answerError tells an operator what went wrong, the detail included: no error's text holds a credential.
func answerError(w http.ResponseWriter, err error) {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		err = &apitoken.Error{Code: apitoken.ErrUnavailable, Detail: "the service did not answer in time"}
	}
	class := operate.ClassOf(err)
	p := Problem{Error: class.Name, Detail: err.Error()}
	if e := (*apitoken.Error)(nil); errors.As(err, &e) {
		if e.Detail != "" {
			p.Detail = e.Detail
		}
		if e.Cause != nil {
			p.Detail += fmt.Sprintf(": %v", e.Cause)
		}
		p.RetryAfter = int64((e.RetryAfter + time.Second - 1) / time.Second)
	}
	answer(w, class.Status, p)
}
