// Package operate holds what operators do with a token service, each operation once. The admin API (package admin, and command
// apitoken through it) and the console's pages for operators are two faces of it: they decide who asks, and how the answer looks.
//
// Who may do what is in the types: [Look] only reads, and [Act] changes things too. A face hands an Act to nobody but those who
// may change things.
//
// No call waits past its context for a store that ignores it. At most 64 calls of a Look, and as many of an Act, wait for a store
// at once: calls that hang while they read leave room for those that change something.
//
// A host that writes a console or an API of its own for operators builds on it as those two do:
//
//	look, act := operate.New(svc)
//	page, err := look.Sessions(ctx, "alice", "", "", 50)
//	err = act.Revoke(ctx, apitoken.BySessions("alice"), "phone lost")
//
// [Wait], [Collect], [Reason] and [ClassOf] are what such faces need besides: a bound on waiting, a page of a listing, the reason
// that the audit trail takes, and a stable name with a status for each kind of error.
package operate

import (
	"context"
	"errors"
	"iter"
	"net/http"
	"strings"

	"github.com/apitoken-go/apitoken"
)

// Look is what may be read of a service.
type Look struct {
	svc   *apitoken.Service
	turns turns
}

// Act adds what changes something. Its own calls, reading ones too, take other turns than those of the Look beside it.
type Act struct{ Look }

// New returns the operations of svc.
func New(svc *apitoken.Service) (Look, Act) {
	return Look{svc, newTurns()}, Act{Look{svc, newTurns()}}
}

// turns bound how many calls wait for a store at once.
type turns chan struct{}

func newTurns() turns { return make(turns, 64) }

// Wait runs f, which reads or writes by ctx, in one of l's turns, and doesn't wait past ctx's end for a store that ignores it.
// ErrUnavailable: the time was over, or every turn is taken by a call that hangs. A panic of f comes up in the caller's goroutine,
// where net/http expects it. The methods of Look and Act wait so by themselves; it is for whatever else a face asks of the service.
func Wait[T any](ctx context.Context, l Look, f func(context.Context) (T, error)) (T, error) {
	return wait(ctx, l.turns, f)
}

func wait[T any](ctx context.Context, turns turns, f func(context.Context) (T, error)) (T, error) {
	type answer struct {
		v     T
		err   error
		panic any
	}
	var none T
	select {
	case turns <- struct{}{}:
	default:
		return none, late("too many calls wait for the store")
	}
	got := make(chan answer, 1)
	go func() {
		var a answer
		defer func() {
			a.panic = recover()
			<-turns
			got <- a
		}()
		a.v, a.err = f(ctx)
	}()
	select {
	case a := <-got:
		if a.panic != nil {
			panic(a.panic)
		}
		if a.err != nil && ctx.Err() != nil {
			return a.v, late("the service did not answer in time")
		}
		return a.v, a.err
	case <-ctx.Done():
		return none, late("the service did not answer in time")
	}
}

func late(why string) error { return &apitoken.Error{Code: apitoken.ErrUnavailable, Detail: why} }

// do is wait for calls that answer an error alone.
func (a Act) do(ctx context.Context, f func(context.Context) error) error {
	_, err := wait(ctx, a.turns, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) })
	return err
}

// Page is a part of a listing.
type Page[T any] struct {
	Items []T
	Next  string // what after is for the next page; empty: there is none
}

// Collect takes a page of a listing that was asked for limit+1 items. Records that can't be read are passed over: Unreadable lists
// them. A store that fails on the way ends it with ErrUnavailable.
func Collect[T any](list iter.Seq2[T, error], limit int, id func(T) string) (p Page[T], err error) {
	last := ""
	var passed error
	for x, err := range list {
		switch {
		case err != nil && !errors.Is(err, apitoken.ErrUnavailable):
			return Page[T]{}, err
		case err != nil:
			passed = err
			continue
		}
		passed = nil
		if len(p.Items) == limit {
			p.Next = last
			break
		}
		p.Items, last = append(p.Items, x), id(x)
	}
	// Only a failure of the store has a time after which to try again; a damaged record has none.
	var e *apitoken.Error
	if errors.As(passed, &e) && e.RetryAfter > 0 {
		return Page[T]{}, passed
	}
	return p, nil
}

// Reason is why something ends, as the audit trail has to say it: at most 256 bytes. ErrInvalidRequest, otherwise.
func Reason(s string) (string, error) {
	if s = strings.TrimSpace(s); s == "" || len(s) > 256 {
		return "", &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: "reason is required, of at most 256 bytes"}
	}
	return s, nil
}

// Class is a kind of error, by a stable name.
type Class struct {
	Name   string
	Err    error
	Status int // of HTTP
}

// Classes are the kinds of errors, the narrower ones first.
var Classes = []Class{
	{"expired", apitoken.ErrExpired, http.StatusUnauthorized},
	{"revoked", apitoken.ErrRevoked, http.StatusUnauthorized},
	{"invalid_proof", apitoken.ErrInvalidProof, http.StatusUnauthorized},
	{"invalid_token", apitoken.ErrInvalidToken, http.StatusUnauthorized},
	{"no_token", apitoken.ErrNoToken, http.StatusUnauthorized},
	{"insufficient_scope", apitoken.ErrInsufficientScope, http.StatusForbidden},
	{"denied", apitoken.ErrDenied, http.StatusForbidden},
	{"not_found", apitoken.ErrNotFound, http.StatusNotFound},
	{"invalid_scope", apitoken.ErrInvalidScope, http.StatusBadRequest},
	{"invalid_request", apitoken.ErrInvalidRequest, http.StatusBadRequest},
	{"limited", apitoken.ErrLimited, http.StatusTooManyRequests},
	{"unavailable", apitoken.ErrUnavailable, http.StatusServiceUnavailable},
}

// ClassOf is the class of an error; "failed" for one of none.
func ClassOf(err error) Class {
	for _, c := range Classes {
		if errors.Is(err, c.Err) {
			return c
		}
	}
	return Class{"failed", err, http.StatusInternalServerError}
}
