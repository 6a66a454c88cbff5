// Package fault is what the packages behind the root answer when something goes wrong: the root's sentinels, and an error that it
// makes its own before a host sees it.
package fault

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Code is a sentinel. The root gives each its name and says what it means.
type Code string

func (c Code) Error() string { return "apitoken: " + string(c) }

// Is makes every expired, revoked or unproved token an invalid one too, as RFC 6750 §3.1 counts them.
func (c Code) Is(target error) bool {
	return target == InvalidToken && (c == Expired || c == Revoked || c == InvalidProof || c == UseNonce)
}

const (
	InvalidToken      Code = "invalid token"
	Expired           Code = "token expired"
	Revoked           Code = "token revoked"
	InvalidProof      Code = "invalid proof"
	UseNonce          Code = "nonce required"
	NoToken           Code = "no token"
	InvalidRequest    Code = "invalid request"
	InsufficientScope Code = "insufficient scope"
	InvalidClient     Code = "invalid client"
	InvalidGrant      Code = "invalid grant"
	InvalidScope      Code = "invalid scope"
	InvalidTarget     Code = "invalid target"
	Denied            Code = "denied"
	Limited           Code = "limit reached"
	Unavailable       Code = "temporarily unavailable"
	NotFound          Code = "not found"
)

// Error is one of the codes and why.
type Error struct {
	Code       Code
	Field      string // of a configuration that is wrong
	Detail     string // for operators; never holds a credential
	RetryAfter time.Duration
	Nonce      string // with UseNonce
	Cause      error  // not part of the chain seen by errors.Is
}

func (e *Error) Error() string { return e.Code.Error() }

func (e *Error) Unwrap() error { return e.Code }

// LogValue shows operators all of it.
func (e *Error) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("error", e.Code.Error())}
	if e.Detail != "" {
		attrs = append(attrs, slog.String("detail", e.Detail))
	}
	if e.RetryAfter > 0 {
		attrs = append(attrs, slog.Duration("retry_after", e.RetryAfter))
	}
	if e.Cause != nil {
		attrs = append(attrs, slog.String("cause", DetailOf(e.Cause)))
	}
	return slog.GroupValue(attrs...)
}

// Fail makes an Error.
func Fail(code Code, format string, args ...any) *Error {
	if len(args) > 0 {
		format = fmt.Sprintf(format, args...)
	}
	return &Error{Code: code, Detail: format}
}

// Wrong is the error of a field of a configuration.
func Wrong(field, format string, args ...any) *Error {
	e := Fail(InvalidRequest, format, args...)
	e.Field = field
	return e
}

// RetryHint is what callers wait where the cause gives no better figure.
const RetryHint = time.Second

// Retry says that trying again is the way.
func Retry(format string, args ...any) *Error {
	e := Fail(Unavailable, format, args...)
	e.RetryAfter = RetryHint
	return e
}

// NoAnswer wraps the error of a store or another process.
func NoAnswer(cause error, detail string) *Error {
	return &Error{Code: Unavailable, Detail: detail, Cause: cause, RetryAfter: RetryHint}
}

// DetailOf tells operators more than Error does.
func DetailOf(err error) string {
	var e *Error
	if !errors.As(err, &e) {
		return err.Error()
	}
	if e.Cause != nil {
		return e.Detail + ": " + DetailOf(e.Cause)
	}
	return e.Detail
}
