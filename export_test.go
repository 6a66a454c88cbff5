package apitoken

import (
	"context"
	"encoding/base64"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken/internal/auditlog"
	"github.com/apitoken-go/apitoken/store"
)

// FlushUses writes what was counted now, and not in half a minute.
func FlushUses(s *Service) { s.audit.Flush(context.Background()) }

// EventName is what the stores' index of events calls a name of another issuer.
func EventName(issuer, name string) string { return auditlog.Name(issuer, name) }

// Tidy is one round of the janitor, at a time of the test's.
func Tidy(s *Service, before time.Time) { s.janitor().tidy(context.Background(), before) }

// FeedBooks is how many sets of rules a validator holds of an issuer.
func FeedBooks(v *JWTValidator, issuer string) (n int) {
	for b := v.trusts[issuer].Rules.Load(); b != nil; b = b.Older {
		n++
	}
	return n
}

// FeedRules is how many entries they have.
func FeedRules(v *JWTValidator, issuer string) (n int) {
	for b := v.trusts[issuer].Rules.Load(); b != nil; b = b.Older {
		n += b.Index.Len()
	}
	return n
}

// SweepFeed forgets what ended before a time.
func SweepFeed(v *JWTValidator, issuer string, before time.Time) {
	v.trusts[issuer].Rules.Load().Sweep(before)
}

// CacheWeight is what the cache counts for a token, and what its entry keeps alive at least; false: it does not keep it.
func CacheWeight(s *Service, token string) (weight, held int64, ok bool) {
	e := s.valid.cache.find(s.valid, s.valid.cache.hash(token), token)
	if e == nil {
		return 0, 0, false
	}
	return int64(e.size), int64(cap(e.data.claim)) + int64(len(token)) + int64(3*len(token)/4), true
}

// TendKeys is one look of the ring at the clock.
func TendKeys(s *Service) { s.SigningKeys.ring.Tend(context.Background()) }

// ForgeKey is the record of a signing key that somebody makes who has read a root secret in clear.
func ForgeKey(s *Service, plain store.Record) (store.Record, error) {
	return s.SigningKeys.ring.Forge(plain)
}

// SignAs is what token says, signed by somebody who has the active key of an audience.
func SignAs(s *Service, audience, token string) (string, error) {
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		return "", err
	}
	x, err := s.SigningKeys.active(s.state.Position(), s.now(), []string{audience})
	if err != nil {
		return "", err
	}
	return x.SignText(context.Background(), "at+jwt", payload)
}

// UseCounters is how many use counters the log knows.
func UseCounters(s *Service) int { return s.audit.Uses.Len() }

// IndexedRules is how many entries the index of rules has.
func IndexedRules(s *Service) int { return s.rules.Index.Len() }

// KeptRules are the rules that would be put back into a store that lost them.
func KeptRules(s *Service) []store.Record { return s.rules.Kept() }
