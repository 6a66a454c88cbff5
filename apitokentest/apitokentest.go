// Package apitokentest helps programs test what they protect with apitoken.
package apitokentest

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// Issuer and Audience are those of every Service that New starts, unless a change says otherwise.
const (
	Issuer   = "https://auth.test"
	Audience = "https://api.test"
)

// Service is a service in memory, with a clock that stands still until it is moved, closed at the
// end of the test.
type Service struct {
	*apitoken.Service
	t     testing.TB
	clock *clock
}

type clock struct {
	mu  sync.Mutex // guards now
	now time.Time
}

func (c *clock) read() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// New starts a Service whose clock stands at noon of the first day of 2030, UTC. change may alter the Config before it does.
func New(t testing.TB, change ...func(*apitoken.Config)) *Service {
	t.Helper()
	s := &Service{t: t, clock: &clock{now: time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)}}
	c := apitoken.Config{Issuer: Issuer, Audience: Audience, InsecureKeysInStore: true, Now: s.clock.read, Store: memstore.NewWithClock(s.clock.read)}
	for _, f := range change {
		f(&c)
	}
	svc, err := apitoken.New(c)
	if err != nil {
		t.Fatalf("apitokentest: %v", err)
	}
	s.Service = svc
	t.Cleanup(func() {
		if err := svc.Close(); err != nil {
			t.Errorf("apitokentest: close: %v", err)
		}
	})
	return s
}

// Now is what the clock shows.
func (s *Service) Now() time.Time { return s.clock.read() }

// Advance moves the clock, and lets the service look at its store again: its view is fresh afterwards.
func (s *Service) Advance(d time.Duration) {
	s.t.Helper()
	s.clock.mu.Lock()
	s.clock.now = s.clock.now.Add(d)
	s.clock.mu.Unlock()
	if err := s.Sync(context.Background()); err != nil {
		s.t.Fatalf("apitokentest: %v", err)
	}
}

// Mint issues an access token and returns it in clear. Any failure fails the test.
func (s *Service) Mint(subject string, scopes ...apitoken.Scope) string {
	s.t.Helper()
	i, err := s.Issue(context.Background(), apitoken.Request{Subject: subject, Scopes: scopes})
	if err != nil {
		s.t.Fatalf("apitokentest: mint for %q: %v", subject, err)
	}
	return i.Access.Reveal()
}

// Sign puts a fresh token for subject into r's Authorization header, and returns r.
func (s *Service) Sign(r *http.Request, subject string, scopes ...apitoken.Scope) *http.Request {
	s.t.Helper()
	r.Header.Set("Authorization", "Bearer "+s.Mint(subject, scopes...))
	return r
}

// Token makes a Token without any service, for handlers that only read the context: see [apitoken.NewContext].
func Token(subject string, scopes ...apitoken.Scope) apitoken.Token {
	t, err := apitoken.NewToken(apitoken.TokenSpec{ID: "test", Issuer: Issuer, Subject: subject, Client: "first-party", Audiences: []string{Audience}, Scopes: scopes})
	if err != nil {
		panic("apitokentest: " + err.Error()) // no claims: nothing can be wrong
	}
	return t
}
