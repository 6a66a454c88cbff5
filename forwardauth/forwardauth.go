// Package forwardauth answers a proxy that asks whether a request may go on: nginx's auth_request, Traefik's ForwardAuth, Caddy's
// forward_auth and Envoy's ext_authz over HTTP. Services behind the proxy then need no code for tokens; they read who calls from
// headers that the proxy sets.
//
//	mux.Handle("/auth/orders", forwardauth.New(svc, forwardauth.Options{
//		Needs:   apitoken.AllOf("orders:read"),
//		Proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")},
//		Headers: map[string]func(apitoken.Token) string{"X-Auth-Subject": apitoken.Token.Subject},
//	}))
//
// docs/proxies.md has the configuration of each proxy.
package forwardauth

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/textproto"
	"net/url"
	"strings"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
)

// Options say what is asked for, and by whom.
type Options struct {
	// Needs is what a request needs; required. Mount a handler for each part of an API that needs something else.
	Needs apitoken.Requirement
	// Proxies are the addresses that may ask; required. Whoever else asks is told 403 whatever it shows: the headers that
	// describe the request are believed.
	Proxies []netip.Prefix
	// Headers are what the proxy is told of the caller: names, and what stands in them. Bytes that are no printable ASCII, and %,
	// come percent-encoded (RFC 3986 §2.1). A value that is empty is sent as an empty header, so that a proxy which copies it
	// overwrites what the caller sent under that name.
	Headers map[string]func(apitoken.Token) string
	// HTTP is passed on to [httpauth.New]. With BaseURL, DPoP proofs are taken: their htu is BaseURL and the path of the request
	// that the proxy has. Where Address is nil, the caller is the last of X-Forwarded-For that is no proxy's.
	HTTP httpauth.Options
}

// New returns the handler. It panics on Options that cannot be, as httpauth.New does: a proxy in front of nothing would let
// everything through, or nothing.
func New(v apitoken.Validator, o Options) http.Handler {
	if len(o.Proxies) == 0 {
		panic("forwardauth: Options.Proxies is empty")
	}
	for name, value := range o.Headers {
		if name != textproto.CanonicalMIMEHeaderKey(name) || strings.ContainsAny(name, " _:\r\n") || value == nil {
			panic(fmt.Sprintf("forwardauth: Options.Headers: %q is no canonical header name, such as X-Auth-Subject, or has no value", name))
		}
	}
	if o.HTTP.Address == nil {
		o.HTTP.Address = httpauth.BehindProxies(o.Proxies...)
	}
	auth := httpauth.New(v, &o.HTTP)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !from(r, o.Proxies) {
			http.Error(w, "Only a proxy may ask.", http.StatusForbidden)
			return
		}
		asked, err := original(r)
		if err != nil {
			refuse(auth, w, r, err)
			return
		}
		t, err := auth.Check(asked, o.Needs)
		if err != nil {
			refuse(auth, w, asked, err)
			return
		}
		for name, value := range o.Headers {
			w.Header().Set(name, encode(value(t)))
		}
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusOK)
	})
}

// from reports whether a request comes from one of the proxies.
func from(r *http.Request, proxies []netip.Prefix) bool {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	a := at.Addr().Unmap().WithZone("")
	for _, p := range proxies {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// original is the request that the proxy has: its method and target are in headers. Envoy asks with the request's own.
func original(r *http.Request) (*http.Request, error) {
	asked := r.Clone(r.Context())
	asked.Body = http.NoBody
	method, err := one(r, "X-Forwarded-Method", "X-Original-Method")
	if err != nil {
		return nil, err
	}
	if method != "" {
		asked.Method = method
	}
	target, err := one(r, "X-Forwarded-Uri", "X-Original-Uri")
	if err != nil || target == "" {
		return asked, err
	}
	u, err := url.ParseRequestURI(target)
	if err != nil || u.Host != "" {
		return nil, malformed("the target of the request is malformed")
	}
	asked.URL, asked.RequestURI = u, target
	return asked, nil
}

// one is the value of whichever of the headers there is.
func one(r *http.Request, names ...string) (string, error) {
	found := ""
	for _, name := range names {
		values := r.Header[name]
		if len(values) > 1 || len(values) == 1 && found != "" && found != values[0] {
			return "", malformed("the proxy says two things: its configuration passes on a header of the caller's")
		}
		if len(values) == 1 {
			found = values[0]
		}
	}
	return found, nil
}

func malformed(detail string) error {
	return &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: detail}
}

// refuse answers by a status that every proxy passes on, 401 or 403, and by one that all of them take for a failure when nobody can
// say. nginx would answer 500 for any other.
func refuse(auth *httpauth.Auth, w http.ResponseWriter, r *http.Request, err error) {
	auth.Error(&narrowed{ResponseWriter: w}, r, err)
}

// narrowed turns 400 into 401 and other statuses below 500 into 403. It leaves the body out, which tells of the first status.
type narrowed struct{ http.ResponseWriter }

func (w *narrowed) WriteHeader(status int) {
	switch {
	case status == http.StatusBadRequest:
		status = http.StatusUnauthorized
	case status > http.StatusUnauthorized && status < http.StatusInternalServerError:
		status = http.StatusForbidden
	}
	w.Header().Del("Content-Type")
	w.Header().Set("Content-Length", "0")
	w.ResponseWriter.WriteHeader(status)
}

func (w *narrowed) Write(p []byte) (int, error) { return len(p), nil }

// Unwrap lets http.ResponseController through.
func (w *narrowed) Unwrap() http.ResponseWriter { return w.ResponseWriter }

const hex = "0123456789ABCDEF"

// encode makes a text that a header can hold, from which it can be had again.
func encode(text string) string {
	var b strings.Builder
	for i := range len(text) {
		if c := text[i]; c > 0x20 && c < 0x7f && c != '%' || c == ' ' && i > 0 && i < len(text)-1 {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}
