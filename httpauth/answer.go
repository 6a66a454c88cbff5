package httpauth

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken"
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
	{apitoken.ErrDenied, http.StatusForbidden, "access_denied", "This is not allowed."},
	{apitoken.ErrLimited, http.StatusTooManyRequests, "rate_limited", "A limit is reached."},
	{apitoken.ErrUnavailable, http.StatusServiceUnavailable, "temporarily_unavailable", "The service can not decide now. Try again."},
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

// dpopAlgs are the algorithms that proofs may be signed with, for challenges (RFC 9449 §7.1).
const dpopAlgs = "ES256 EdDSA RS256 PS256"

// Error answers with err's status, challenge and problem body. Errors that are not of apitoken's
// answer 500.
func (a *Auth) Error(w http.ResponseWriter, r *http.Request, err error) {
	v := judge(err)
	h := w.Header()
	p := problem{Type: "about:blank", Title: http.StatusText(v.status), Status: v.status, Detail: v.description, Error: v.code}
	var e *apitoken.Error
	if !errors.As(err, &e) {
		e = &apitoken.Error{Code: err}
	}
	vary(h)
	switch v.status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusServiceUnavailable, http.StatusTooManyRequests, http.StatusBadRequest:
		h.Set("Cache-Control", "no-store")
	}
	switch {
	case v.code == "insufficient_scope":
		p.Scope = scopeOf(e.Needs)
		a.challenge(h, v, p.Scope, scheme(r))
	case v.status == http.StatusUnauthorized && v.code == "":
		a.challenge(h, v, "", "")
	case v.code == "invalid_dpop_proof" || v.code == "use_dpop_nonce":
		a.challenge(h, v, "", "DPoP")
	case v.status == http.StatusUnauthorized && v.code != "invalid_client" || v.code == "invalid_request":
		a.challenge(h, v, "", scheme(r))
	case v.status == http.StatusTooManyRequests || v.status == http.StatusServiceUnavailable:
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
func scheme(r *http.Request) string {
	if r != nil {
		if v := r.Header.Get("Authorization"); len(v) >= 4 && strings.EqualFold(v[:4], "DPoP") {
			return "DPoP"
		}
	}
	return "Bearer"
}

// challenge adds WWW-Authenticate: for one scheme with an error, or for all that are taken without one.
func (a *Auth) challenge(h http.Header, v verdict, scope, only string) {
	for _, s := range [...]string{"Bearer", "DPoP"} {
		if s == "DPoP" && a.base == "" || only != "" && s != only {
			continue
		}
		var b strings.Builder
		b.WriteString(s)
		sep := " "
		add := func(name, value string) {
			if value != "" {
				b.WriteString(sep + name + `="` + value + `"`)
				sep = ", "
			}
		}
		add("realm", a.o.Realm)
		if s == "DPoP" {
			add("algs", dpopAlgs)
		}
		add("error", v.code)
		add("error_description", v.description)
		add("scope", scope)
		add("resource_metadata", a.o.Metadata)
		h.Add("WWW-Authenticate", b.String())
	}
}

// refuse answers for the guards.
func (a *Auth) refuse(w http.ResponseWriter, r *http.Request, err error) {
	if a.o.OnRefuse != nil {
		a.o.OnRefuse(redacted(r), err)
	}
	a.Error(w, r, err)
}

// redacted is r without anything that a log must not hold.
func redacted(r *http.Request) *http.Request {
	c := r.Clone(r.Context())
	for _, name := range []string{"Authorization", "Dpop", "Cookie", "Proxy-Authorization"} {
		if _, ok := c.Header[name]; ok {
			c.Header[name] = []string{"[redacted]"}
		}
	}
	if c.URL.RawQuery != "" {
		q := c.URL.Query()
		for _, name := range []string{"access_token", "token", "code", "refresh_token", "client_secret"} {
			if q.Has(name) {
				q.Set(name, "[redacted]")
			}
		}
		c.URL.RawQuery = q.Encode()
		c.RequestURI = c.URL.RequestURI()
	}
	c.Body = http.NoBody
	return c
}
