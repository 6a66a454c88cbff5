// A client's assertion: a JWT that it signs to prove who it is (RFC 7523 §3).

package clientauth

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/jws"
)

const (
	maxAssertionBytes = 8 << 10
	maxAssertionID    = 255 // bytes of a jti
	maxAssertionLife  = time.Hour
)

// Claimant is the client that an assertion says it is of. Nothing of the assertion has been verified.
func Claimant(assertion string) string {
	var t jws.Token
	if jws.Parse(assertion, maxAssertionBytes, &t) != nil {
		return ""
	}
	return t.Claims.Subject
}

// assertion checks a JWT of RFC 7523 §3, and takes its jti once in all processes on the store.
func (c *Checker) assertion(ctx context.Context, x *Credentials, a *Attempt) (bool, error) {
	if x == nil || x.Method != methodAssertion {
		return false, nil
	}
	id, until, ok := c.verify(x, a)
	if !ok {
		return false, nil
	}
	err := c.cfg.Once(ctx, "assertion\x00"+x.Client+"\x00"+id, until)
	if errors.Is(err, fault.InvalidRequest) {
		return false, nil // used before
	}
	return err == nil, err
}

// verify checks a JWT of RFC 7523 §3. The caller must see to it that id is taken once until the given time.
func (c *Checker) verify(x *Credentials, a *Attempt) (id string, until time.Time, ok bool) {
	endpoints := a.Endpoints
	if c.cfg.FAPI {
		endpoints = nil
	}
	var t jws.Token
	if jws.Parse(a.Assertion, maxAssertionBytes, &t) != nil {
		return "", until, false
	}
	// Another kind of JWT, such as a proof or a token of ours, is none (RFC 8725 §3.11).
	if t.Header.Typ != "" && !jws.IsType(t.Header.Typ, "jwt") && !jws.IsType(t.Header.Typ, "client-authentication+jwt") {
		return "", until, false
	}

	cl := &t.Claims
	if cl.Issuer != x.Client || cl.Subject != x.Client || cl.ID == "" || len(cl.ID) > maxAssertionID || len(cl.Audience) == 0 {
		return "", until, false
	}
	// The issuer is its only aud (draft-ietf-oauth-rfc7523bis §4), or an endpoint that the caller takes as well. One that names another server besides may have been made for that server, or obtained by it (CVE-2025-27370).
	for _, aud := range cl.Audience {
		if aud != c.cfg.Issuer && !slices.Contains(endpoints, aud) {
			return "", until, false
		}
	}
	if len(endpoints) == 0 && len(cl.Audience) != 1 {
		return "", until, false
	}
	// FAPI 2.0 §5.3.2.1: aud is a string, no list of one.
	if _, err := t.Text("aud"); c.cfg.FAPI && err != nil {
		return "", until, false
	}
	if !slices.Contains(c.cfg.Algs, t.Header.Alg) {
		return "", until, false
	}
	now, ahead := c.cfg.Now().Unix(), int64(c.cfg.Ahead/time.Second)
	if cl.Expires <= now || cl.Expires-now > int64(maxAssertionLife/time.Second) || cl.IssuedAt > now+ahead || cl.NotBefore > now+ahead {
		return "", until, false
	}

	if !slices.ContainsFunc(x.Keys, func(key *jws.PublicKey) bool {
		return (t.Header.KID == "" || t.Header.KID == key.KID) && key.Allows(t.Header.Alg) && key.Verify(t.SigningInput, t.Signature) == nil
	}) {
		return "", until, false
	}
	return cl.ID, time.Unix(cl.Expires, 0), true
}
