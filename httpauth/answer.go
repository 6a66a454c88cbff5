package httpauth

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/bodytime"
	"github.com/apitoken-go/apitoken/internal/opaque"
)

// verdict is how an error is answered.
type verdict struct {
	is          error
	status      int
	code        string // of RFC 6750 §3.1, RFC 9449 §7.1 and RFC 6749 §5.2; empty: none is said
	description string // constant: what came in is never said back
}

// verdicts are looked through in this order: the special before the general.
var verdicts = []verdict{
	{apitoken.ErrNoToken, http.StatusUnauthorized, "", ""},
	{apitoken.ErrInvalidProof, http.StatusUnauthorized, "invalid_dpop_proof", "The DPoP proof is missing or not valid."},
	{apitoken.ErrUseNonce, http.StatusUnauthorized, "use_dpop_nonce", "The DPoP proof needs a nonce."},
	{apitoken.ErrExpired, http.StatusUnauthorized, "invalid_token", "The token has expired."},
	{apitoken.ErrRevoked, http.StatusUnauthorized, "invalid_token", "The token was revoked."},
	{apitoken.ErrInvalidToken, http.StatusUnauthorized, "invalid_token", "The token is not valid."},
	{apitoken.ErrInvalidRequest, http.StatusBadRequest, "invalid_request", "The request is malformed."},
	{apitoken.ErrInsufficientScope, http.StatusForbidden, "insufficient_scope", "The token does not cover this request."},
	{apitoken.ErrInvalidClient, http.StatusUnauthorized, "invalid_client", "The client is unknown or its credential is wrong."},
	{apitoken.ErrInvalidGrant, http.StatusBadRequest, "invalid_grant", "The grant is not valid."},
	{apitoken.ErrInvalidScope, http.StatusBadRequest, "invalid_scope", "The scope is not valid."},
	{apitoken.ErrInvalidTarget, http.StatusBadRequest, "invalid_target", "The audience is not valid."},
	{errOtherOrigin, http.StatusForbidden, "access_denied", "The request is from an origin that this service does not trust."},
	{apitoken.ErrDenied, http.StatusForbidden, "access_denied", "This is not allowed."},
	{apitoken.ErrLimited, http.StatusTooManyRequests, "rate_limited", "A limit is reached."},
	{apitoken.ErrUnavailable, http.StatusServiceUnavailable, "temporarily_unavailable", "The service cannot decide now. Try again."},
	{apitoken.ErrNotFound, http.StatusNotFound, "not_found", "There is no such thing."},
}

var unknown = verdict{nil, http.StatusInternalServerError, "server_error", "Something went wrong."}

func judge(err error) verdict {
	for _, v := range verdicts {
		if errors.Is(err, v.is) {
			return v
		}
	}
	return unknown
}

// problem is the body of a refusal (RFC 9457), with RFC 6750's members as extensions.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	Error  string `json:"error,omitempty"`
	Scope  string `json:"scope,omitempty"`
}

// Error answers with err's status, challenge and problem body, after OnRefuse has seen it. Errors that are not of
// apitoken's answer 500. Nothing of it may be stored by a cache.
func (a *Auth) Error(w http.ResponseWriter, r *http.Request, err error) {
	bodytime.Refused(w, r)
	if a.o.OnRefuse != nil && r != nil {
		a.o.OnRefuse(a.redacted(r), err)
	}
	v := judge(err)
	h := w.Header()
	p := problem{Type: "about:blank", Title: http.StatusText(v.status), Status: v.status, Detail: v.description, Error: v.code}
	var e *apitoken.Error
	if !errors.As(err, &e) {
		e = &apitoken.Error{Code: err}
	}
	switch v.status {
	case http.StatusUnauthorized: // never without a challenge (RFC 9110 §15.5.2)
		a.unauthorized(h, r, v, scopeOf(e.Needs))
	case http.StatusForbidden:
		if v.code == "insufficient_scope" {
			p.Scope = scopeOf(e.Needs)
			h.Add("WWW-Authenticate", a.challenge(a.scheme(r), v, p.Scope))
		}
	case http.StatusBadRequest:
		if v.code == "invalid_request" {
			h.Add("WWW-Authenticate", a.challenge(a.scheme(r), v, ""))
		}
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		h.Set("Retry-After", seconds(e.RetryAfter))
	}
	if e.Nonce != "" {
		h.Set("DPoP-Nonce", e.Nonce)
	}
	writeProblem(w, r, p)
}

func writeProblem(w http.ResponseWriter, r *http.Request, p problem) {
	body, err := json.Marshal(p)
	if err != nil {
		body = []byte(`{}`)
	}
	h := w.Header()
	vary(h)
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "application/problem+json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(p.Status)
	if r == nil || r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}

// scopeOf is the scope attribute: what would have been enough (RFC 6750 §3).
func scopeOf(q apitoken.Requirement) string { return q.Scopes().String() }

// seconds is the form of Retry-After, never less than one.
func seconds(d time.Duration) string {
	return strconv.FormatInt(max(1, int64(math.Ceil(d.Seconds()))), 10)
}

// scheme is the one that r used, as challenges name it.
func (a *Auth) scheme(r *http.Request) string {
	if a.base != "" && r != nil && schemeOf(r) == "dpop" {
		return "DPoP"
	}
	return "Bearer"
}

func schemeOf(r *http.Request) string {
	scheme, _, _ := strings.Cut(strings.TrimLeft(r.Header.Get("Authorization"), " \t"), " ")
	return strings.ToLower(scheme)
}

// unauthorized adds the challenges of a 401. scope is what the request needs, in all.
func (a *Auth) unauthorized(h http.Header, r *http.Request, v verdict, scope string) {
	switch {
	case v.code == "invalid_dpop_proof", v.code == "use_dpop_nonce", v.code != "" && v.code != "invalid_client" && a.scheme(r) == "DPoP":
		h.Add("WWW-Authenticate", a.challenge("DPoP", v, scope))
		return
	case v.code == "invalid_client":
		if r != nil && schemeOf(r) == "basic" { // the one that the client used (RFC 6749 §5.2)
			h.Add("WWW-Authenticate", `Basic realm="`+a.o.Realm+`"`)
			return
		}
		v = verdict{} // it is no error of a token
	}
	h.Add("WWW-Authenticate", a.challenge("Bearer", v, scope))
	if a.base != "" { // the other way, without the error of this one (RFC 9449 §7.2)
		h.Add("WWW-Authenticate", a.challenge("DPoP", verdict{}, scope))
	}
}

// challenge is one of WWW-Authenticate: with v's error, if it has one.
func (a *Auth) challenge(scheme string, v verdict, scope string) string {
	var b strings.Builder
	b.WriteString(scheme)
	sep := " "
	add := func(name, value string) {
		if value != "" {
			b.WriteString(sep + name + `="` + value + `"`)
			sep = ", "
		}
	}
	add("realm", a.o.Realm)
	if scheme == "DPoP" {
		add("algs", a.algs)
	}
	add("error", v.code)
	add("error_description", v.description)
	add("scope", scope)
	add("resource_metadata", a.o.Metadata)
	return b.String()
}

// redacted is r without anything that a log must not hold: no credential wherever one may stand, no body, no form.
func (a *Auth) redacted(r *http.Request) *http.Request {
	c := r.Clone(r.Context())
	for _, s := range a.o.Sources {
		for i := range c.Header[s.Header] {
			c.Header[s.Header][i] = hidden
		}
	}
	for name, values := range c.Header {
		for i, v := range values {
			switch {
			case name == "Cookie", name == "Sec-Websocket-Protocol", telling(name): // in a browser the only header for a WebSocket's token
				v = hidden
			case name == "Referer", strings.HasSuffix(name, "-Uri"), strings.HasSuffix(name, "-Url"):
				v, _, _ = strings.Cut(v, "?") // what led here may have had a code in its query
			}
			if holdsToken(v) {
				v = hidden
			}
			values[i] = v
		}
	}
	if c.URL.RawQuery != "" {
		q := url.Values{}
		for name, values := range c.URL.Query() { // drops what is malformed
			for _, v := range values {
				if telling(name) || holdsToken(v) {
					v = hidden
				}
				if holdsToken(name) {
					name = hidden
				}
				q.Add(name, v)
			}
		}
		c.URL.RawQuery = q.Encode()
	}
	if holdsToken(c.URL.Path) {
		c.URL.Path, c.URL.RawPath = "/"+hidden, ""
	}
	c.URL.User = nil
	c.RequestURI = c.URL.RequestURI()
	c.Form, c.PostForm, c.MultipartForm = nil, nil, nil
	c.Body, c.GetBody = http.NoBody, nil
	return c
}

const hidden = "[redacted]"

// telling reports whether what has this name may be a credential, of this module's or of another's.
func telling(name string) bool {
	name = strings.ToLower(name)
	for _, part := range [...]string{"auth", "token", "code", "secret", "pass", "assertion", "key", "sig", "jwt", "dpop", "ticket", "credential"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

// holdsToken reports whether text holds a token of this module's, or what may be a JWT.
func holdsToken(text string) bool {
	for range opaque.Find([]byte(text)) {
		return true
	}
	return strings.Contains(text, "eyJ")
}
