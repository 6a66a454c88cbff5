package apitoken

import (
	"context"
	"errors"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/opaque"
)

// Consumer is a Validator whose tokens may be limited by rate or by number of uses. [Authorize] calls it once for each
// request that it lets through; Validate alone never consumes anything. A Validator that only passes on what a [Service]
// answered need not be one: Authorize then asks that Service.
type Consumer interface {
	// Consume takes one use of t: nil, ErrLimited, or ErrUnavailable.
	Consume(ctx context.Context, t Token) error
}

// Consume implements [Consumer]: tokens that are not API keys, and keys without a limit, cost nothing. Uses are
// reserved in batches of at most a sixteenth of what remains: never more than MaxUses in all processes, to the last one exact
// below 32, and a process that dies may lose its batch.
func (s *Service) Consume(ctx context.Context, t Token) error {
	err := s.consume(ctx, t)
	if errors.Is(err, ErrLimited) {
		if e := s.APIKeys.known(t.ID()); e != nil {
			var known refusal
			known.of(s.core, e.d)
			s.audit.denied(ctx, reasonOf(err), known, err)
		}
	}
	return err
}

// consume is Consume for calls that count their refusals themselves.
func (s *Service) consume(ctx context.Context, t Token) error {
	if t.IsZero() || t.Kind() != KindAPIKey || t.Issuer() != s.cfg.Issuer {
		return nil
	}
	return s.APIKeys.consume(ctx, t.ID())
}

// Consume implements [Consumer] where the validator is a service's.
func (v *JWTValidator) Consume(ctx context.Context, t Token) error {
	if v.consume == nil {
		return nil
	}
	return v.consume(ctx, t)
}

// known is a key that this process has in memory; nil: none.
func (k *APIKeys) known(id string) *knownKey {
	raw, err := opaque.ParseID(id)
	if err != nil {
		return nil
	}
	e, _ := k.keys.Get(raw)
	return e
}

func (k *APIKeys) consume(ctx context.Context, id string) error {
	raw, err := opaque.ParseID(id)
	if err != nil {
		return fail(ErrInvalidToken, "no such API key")
	}
	e, ok := k.keys.Get(raw)
	if !ok {
		if e, err = k.load(ctx, raw); err != nil {
			return err
		}
	}
	if ok, wait := e.meter.Take(k.s.now(), e.rate.Burst, e.rate.Per); !ok {
		return &Error{Code: ErrLimited, RetryAfter: wait, Detail: "the API key's rate"}
	}
	if e.maxUses == 0 {
		return nil
	}

	ctx, cancel := context.WithTimeout(ctx, commit.Timeout) // all who wait for a store that hangs wait no longer than one
	defer cancel()
	return public(e.meter.Use(ctx, func(ctx context.Context) (uint64, error) {
		var expires int64
		if e.expires != 0 { // never before the key's own record: a count that is gone would begin again
			expires = e.expires + int64((keySlack+ruleSlack)/time.Millisecond)
		}
		return k.s.audit.uses.Reserve(ctx, e.counter, e.maxUses, expires)
	}))
}
