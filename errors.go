// Errors: a code that errors.Is finds, a detail for the host, and nothing of it for clients.

package apitoken

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/apitoken-go/apitoken/internal/fault"
)

// What went wrong, for errors.Is. Each comment begins with what adapters answer.
var (
	// ErrInvalidToken: 401 invalid_token. Malformed, forged, of another issuer or audience, of the
	// wrong kind, or bound to a key that was not proved. Is also true of the two below.
	ErrInvalidToken error = fault.InvalidToken
	// ErrExpired: 401 invalid_token. The token was good once.
	ErrExpired error = fault.Expired
	// ErrRevoked: 401 invalid_token. A rule refuses the token.
	ErrRevoked error = fault.Revoked

	// ErrInvalidProof: 401 invalid_dpop_proof. A DPoP proof is missing, wrong, too old, or was seen before (RFC 9449 §7.1).
	ErrInvalidProof error = fault.InvalidProof
	// ErrUseNonce: 401 use_dpop_nonce. The proof is good and lacks our nonce: Error.Nonce is one (RFC 9449 §9).
	ErrUseNonce error = fault.UseNonce

	// ErrNoToken: 401, a bare challenge. The request carried no credential (RFC 6750 §3.1).
	ErrNoToken error = fault.NoToken
	// ErrInvalidRequest: 400 invalid_request. Malformed, repeated or contradictory input.
	ErrInvalidRequest error = fault.InvalidRequest
	// ErrInsufficientScope: 403 insufficient_scope. Error.Needs says what was missing.
	ErrInsufficientScope error = fault.InsufficientScope
	// ErrInvalidClient: 401 invalid_client. Unknown client or wrong credential, never which.
	ErrInvalidClient error = fault.InvalidClient
	// ErrInvalidGrant: 400 invalid_grant. A refresh token or ticket that is unknown, spent, expired
	// or another client's.
	ErrInvalidGrant error = fault.InvalidGrant
	// ErrInvalidScope: 400 invalid_scope. Unknown, malformed, or more than the client or parent has.
	ErrInvalidScope error = fault.InvalidScope
	// ErrInvalidTarget: 400 invalid_target. An audience that the client may not ask for (RFC 8707 §2).
	ErrInvalidTarget error = fault.InvalidTarget
	// ErrDenied: 403 access_denied, unauthorized_client. Well-formed and not allowed: a disabled
	// client, a grant type it lacks, the host's hook said no.
	ErrDenied error = fault.Denied
	// ErrLimited: 429 with Retry-After. Rate, use or quota limit reached.
	ErrLimited error = fault.Limited
	// ErrUnavailable: 503 with Retry-After. State could not be read, or the outcome of a write is
	// unknown. Retrying is safe. Never means "bad token".
	ErrUnavailable error = fault.Unavailable
	// ErrNotFound: 404. No such grant, client, key or rule, or none that the caller may touch.
	ErrNotFound error = fault.NotFound
)

// Error is what this module's packages return. Detail and Cause are for operators: they show in log/slog, in fmt's %v and %+v, and
// so in what fmt.Errorf makes of it with %w. Never answer a client with those.
//
// Error() is fit for a client wherever a client's input decides: Validate, Refresh, Redeem, Exchange, Issue with a client's
// credential, APIKeys.For. Calls that only the host's own code makes, such as Clients.Declare, SetRole, SigningKeys.Import and
// Issue for the host itself, say there what is wrong as well. No text of either kind holds a credential.
type Error struct {
	Code       error         // one of the sentinels
	Detail     string        // for operators; never holds a credential
	RetryAfter time.Duration // with ErrLimited and ErrUnavailable
	Needs      Requirement   // with ErrInsufficientScope
	Nonce      string        // with ErrUseNonce
	Cause      error         // not part of the chain seen by errors.Is

	told bool // Error() shows Detail and Cause: the caller is the host's own code
}

// Error is the text of Code. What the host's own calls return adds Detail and Cause.
func (e *Error) Error() string {
	if e.told {
		return e.full()
	}
	return e.class()
}

// class is the text of Code alone.
func (e *Error) class() string {
	if e.Code == nil {
		return "apitoken: error"
	}
	return e.Code.Error()
}

// full is all that operators see.
func (e *Error) full() string {
	s := e.class()
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if e.Cause != nil {
		s += fmt.Sprintf(": %+v", e.Cause)
	}
	return s
}

// tell makes the error that a call of the host's own code returns say in Error() what is wrong. Deferred, it needs err to be a
// named result.
func tell(err *error) {
	if e, ok := (*err).(*Error); ok && !e.told {
		c := *e
		c.told = true
		*err = &c
	}
}

// Format prints the detail and the cause behind Error() for %v, and so for log.Print and for the text of what wraps it by %w,
// which would lose them otherwise. %s and %q are Error() alone.
func (e *Error) Format(f fmt.State, verb rune) {
	if e == nil {
		io.WriteString(f, "<nil>")
		return
	}
	if verb != 'v' {
		fmt.Fprintf(f, fmt.FormatString(f, verb), e.Error())
		return
	}
	io.WriteString(f, e.full())
}

// Unwrap gives Code to errors.Is; Cause stays out, so that a driver's error never passes for ours.
func (e *Error) Unwrap() error { return e.Code }

// LogValue shows all of the error, for operators.
func (e *Error) LogValue() slog.Value {
	attrs := make([]slog.Attr, 0, 4)
	attrs = append(attrs, slog.String("error", e.class()))
	if e.Detail != "" {
		attrs = append(attrs, slog.String("detail", e.Detail))
	}
	if e.RetryAfter > 0 {
		attrs = append(attrs, slog.Duration("retry_after", e.RetryAfter))
	}
	if e.Cause != nil {
		attrs = append(attrs, slog.String("cause", e.Cause.Error()))
	}
	return slog.GroupValue(attrs...)
}

// public makes the error of a package behind this one our own. Every exported call that leads into one ends with it.
func public(err error) error {
	if err == nil { // before there is a variable that has to be allocated
		return nil
	}
	var f *fault.Error
	if !errors.As(err, &f) {
		return err
	}
	e := &Error{Code: f.Code, Detail: f.Detail, RetryAfter: f.RetryAfter, Nonce: f.Nonce, Cause: causeOf(f.Cause)}
	if f.Field != "" {
		e.Detail = "Config." + f.Field + ": " + f.Detail
		return &ConfigError{Field: f.Field, Err: e}
	}
	return e
}

// causeOf is err as a Cause: an error of a package behind this one would show its class alone.
func causeOf(err error) error {
	if f, ok := err.(*fault.Error); ok {
		return public(f)
	}
	return err
}

// fail makes an *Error. The detail is for operators: it may name what was wrong, never a credential.
func fail(code error, format string, args ...any) *Error {
	if len(args) > 0 {
		format = fmt.Sprintf(format, args...)
	}
	return &Error{Code: code, Detail: format}
}

// retryHint is what adapters tell callers to wait when the cause gives no better figure.
const retryHint = fault.RetryHint

// unavailable wraps the error of a store or another process.
func unavailable(cause error, detail string) *Error {
	return &Error{Code: ErrUnavailable, Detail: detail, Cause: causeOf(cause), RetryAfter: retryHint}
}

// tryAgain is ErrUnavailable for what another try may get.
func tryAgain(format string, args ...any) *Error {
	e := fail(ErrUnavailable, format, args...)
	e.RetryAfter = retryHint
	return e
}

// asError is err as an *Error: what is none, such as the error of a context, is ErrUnavailable with detail.
func asError(err error, detail string) *Error {
	var e *Error
	if errors.As(public(err), &e) {
		return e
	}
	return unavailable(err, detail)
}

// detailOf tells operators more than Error() does: for Explain and for logs.
func detailOf(err error) string {
	var e *Error
	if !errors.As(public(err), &e) {
		return err.Error()
	}
	if e.Cause != nil {
		return e.Detail + ": " + e.Cause.Error()
	}
	return e.Detail
}

func isNotFound(err error) bool { return errors.Is(err, ErrNotFound) }

// wrong is the error of a refused Config: it names the field, so that nobody has to guess.
func wrong(field, format string, args ...any) error {
	e := fail(ErrInvalidRequest, format, args...)
	e.Detail = "Config." + field + ": " + e.Detail
	return &ConfigError{Field: field, Err: e}
}

// ConfigError is what constructors answer to a dangerous or contradictory configuration.
type ConfigError struct {
	Field string // such as "Issuer" or "Lifetimes.Access"
	Err   error
}

// Error names the field and says why.
func (e *ConfigError) Error() string { return "apitoken: " + detailOf(e.Err) }

// Unwrap gives the cause to errors.Is.
func (e *ConfigError) Unwrap() error { return e.Err }

// reasonOf is the class of a refusal, for counters and events.
func reasonOf(err error) string {
	for _, c := range [...]struct {
		err  error
		name string
	}{{ErrExpired, "expired"}, {ErrRevoked, "revoked"}, {ErrInvalidProof, "proof"}, {ErrUseNonce, "nonce"}, {ErrInvalidToken, "invalid"}, {ErrNoToken, "none"}, {ErrInsufficientScope, "scope"},
		{ErrInvalidClient, "client"}, {ErrInvalidGrant, "grant"}, {ErrLimited, "limited"}, {ErrUnavailable, "unavailable"}, {ErrDenied, "denied"}} {
		if errors.Is(err, c.err) {
			return c.name
		}
	}
	return "other"
}
