package oauthhttp

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/apitoken-go/apitoken"
)

// A refusal is an error as a client sees it. Its text is a constant: what came in is never said back.
type refusal struct {
	status int
	code   string // of RFC 6749 §5.2 and of the RFCs that extend it
	text   string
	cause  error // for operators
}

func (e *refusal) Error() string { return e.code }
func (e *refusal) Unwrap() error { return e.cause }

func bad(code, text string) *refusal {
	return &refusal{status: http.StatusBadRequest, code: code, text: text}
}

func invalid(text string) *refusal { return bad("invalid_request", text) }

var (
	errNoClient       = &refusal{status: http.StatusUnauthorized, code: "invalid_client", text: "The client is unknown, or its credential is missing or wrong."}
	errUnauthorized   = bad("unauthorized_client", "The client may not use this.")
	errDetails        = bad("invalid_authorization_details", "The authorization details are not acceptable.")
	errScope          = bad("invalid_scope", "The scope is malformed, unknown, or more than may be had.")
	errServer         = &refusal{status: http.StatusInternalServerError, code: "server_error", text: "Something went wrong."}
	errNotFound       = &refusal{status: http.StatusNotFound, code: "not_found", text: "There is no such thing."}
	errInvalidRequest = invalid("The request is malformed or contradicts itself.")
)

// verdicts map the service's errors to answers of the token endpoint and its like, the special before the general.
var verdicts = []struct {
	is error
	as *refusal
}{
	{apitoken.ErrInvalidProof, bad("invalid_dpop_proof", "The DPoP proof is missing or not valid.")},
	{apitoken.ErrUseNonce, bad("use_dpop_nonce", "The DPoP proof needs a nonce.")},
	{apitoken.ErrNoToken, invalid("A token is missing.")},
	{apitoken.ErrInvalidToken, invalid("A token is not valid.")}, // RFC 8693 §2.2.2: of the subject or the actor
	{apitoken.ErrInvalidRequest, errInvalidRequest},
	{apitoken.ErrInvalidClient, errNoClient},
	{apitoken.ErrInvalidGrant, bad("invalid_grant", "The grant is unknown, spent, expired, revoked, or another client's.")},
	{apitoken.ErrInvalidScope, errScope},
	{apitoken.ErrInvalidTarget, bad("invalid_target", "The resource is unknown, or not for this client.")},
	{apitoken.ErrDenied, errUnauthorized},
	{apitoken.ErrLimited, &refusal{status: http.StatusTooManyRequests, code: "rate_limited", text: "Too many requests. Try again later."}},
	{apitoken.ErrUnavailable, &refusal{status: http.StatusServiceUnavailable, code: "temporarily_unavailable", text: "The service cannot decide now. Try again."}},
	{apitoken.ErrNotFound, errNotFound},
}

// explained is a refusal whose text stands in its cause too, where the service finds it for its log.
func explained(err error) error {
	var own *refusal
	if !errors.As(err, &own) || own.cause != nil {
		return err
	}
	x := *own
	x.cause = &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: own.text}
	return &x
}

// judge is what a client is told of err.
func judge(err error) *refusal {
	var e *refusal
	if errors.As(err, &e) {
		return e
	}
	for _, v := range verdicts {
		if errors.Is(err, v.is) {
			return v.as
		}
	}
	if isUnavailable(err) {
		return verdicts[len(verdicts)-2].as
	}
	return errServer
}

// denied records that a client or caller that proved who it is was refused. by is the confirmed client; zero: the token in ctx.
// It returns err.
func (h *Handler) denied(ctx context.Context, by apitoken.ClientAuth, reason string, err error) error {
	v := judge(err)
	if err == nil || v.status >= http.StatusInternalServerError || v.code == "authorization_pending" || v.code == "slow_down" {
		return err // a device that is told to wait was refused nothing (RFC 8628 §3.5)
	}
	why := v.text
	var e *apitoken.Error
	if errors.As(err, &e) && e.Detail != "" {
		why = e.Detail
	}
	h.adapter.Refused(ctx, by, reason, why)
	return err
}

// errorBody is RFC 6749 §5.2.
type errorBody struct {
	Error       string `json:"error"`
	Description string `json:"error_description,omitempty"`
}

// refuse answers err.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, err error) {
	v := judge(err)
	head := w.Header()
	var e *apitoken.Error
	errors.As(err, &e)
	switch v.status {
	case http.StatusUnauthorized:
		if head.Get("WWW-Authenticate") == "" {
			head.Set("WWW-Authenticate", `Basic realm="oauth", charset="UTF-8"`) // RFC 6749 §5.2
		}
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		var wait time.Duration
		if e != nil {
			wait = e.RetryAfter
		}
		head.Set("Retry-After", strconv.FormatInt(max(1, int64(math.Ceil(wait.Seconds()))), 10))
	}
	if e != nil && e.Nonce != "" {
		head.Set("DPoP-Nonce", e.Nonce) // RFC 9449 §8
	}
	if v.status >= http.StatusInternalServerError {
		h.log.WarnContext(r.Context(), "oauthhttp: refused", "path", r.URL.Path, "error", v.code, "cause", detail(err, e))
	} else {
		h.log.DebugContext(r.Context(), "oauthhttp: refused", "path", r.URL.Path, "error", v.code, "cause", detail(err, e))
	}
	raw, err := json.Marshal(errorBody{v.code, v.text})
	if err != nil {
		raw = []byte(`{"error":"server_error"}`)
	}
	head.Set("Content-Type", "application/json")
	send(w, r, v.status, raw)
}

// detail is what operators see.
func detail(err error, e *apitoken.Error) any {
	if e != nil {
		return e
	}
	var own *refusal
	if errors.As(err, &own) {
		if own.cause != nil {
			return own.cause.Error()
		}
		return own.text
	}
	return err.Error()
}

// send writes a body; a caller who has gone has nothing to be told.
func send(w http.ResponseWriter, r *http.Request, status int, body []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}
