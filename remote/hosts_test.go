package remote_test

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/keyhash"
	"github.com/apitoken-go/apitoken/profile"
	"github.com/apitoken-go/apitoken/remote"
	"github.com/apitoken-go/apitoken/store"
)

func hexSum(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

// oldForms are of a host that kept digests of some keys, and of others a slow hash beside their start.
func oldForms() map[string]keyhash.Form {
	return map[string]keyhash.Form{
		"digest": keyhash.SHA256("sk_live_"), "hmac": keyhash.HMACSHA256("hk_", []byte("of the host's own")),
		"start": keyhash.ByStart("pk_", 11, func(key, hash string) bool { return hexSum("salt"+key) == hash }),
		"plain": keyhash.SHA256(""),
	}
}

func oldKey(form, subject string) (string, apitoken.ImportedKey) {
	x := apitoken.ImportedKey{Form: form, APIKeyRequest: apitoken.APIKeyRequest{Subject: subject, Scopes: apitoken.Scopes{"orders"}}}
	key := map[string]string{"digest": "sk_live_", "start": "pk_", "plain": "0f-"}[form] + rand.Text()
	x.Hash = hexSum(key)
	if form == "start" {
		x.Hash, x.Lookup = hexSum("salt"+key), key[:11]
	}
	return key, x
}

// class is a verdict: nil, or one of the errors that a host tells apart.
func class(err error) error {
	for _, c := range []error{apitoken.ErrExpired, apitoken.ErrRevoked, apitoken.ErrInvalidToken, apitoken.ErrUnavailable} {
		if errors.Is(err, c) {
			return c
		}
	}
	return err
}

// A process without a store takes the API keys of another program that the service imported, and nothing else that looks like one;
// what strangers send costs the issuer nothing.
func TestImportedKeysWithoutAStore(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(c *apitoken.Config) { c.KeyHashes = oldForms() })
	var keys, starts []string
	add := func(form, subject string) string {
		key, x := oldKey(form, subject)
		n, err := s.svc.APIKeys.Import(s.ctx, slices.Values([]apitoken.ImportedKey{x}))
		require.NoError(t, err)
		require.Equal(t, 1, n)
		return key
	}
	for _, form := range []string{"digest", "start", "plain"} {
		keys = append(keys, add(form, "alice"))
	}
	for range 40 { // more than a page of the feed that asks for few rules
		starts = append(starts, add("digest", "carol"))
	}
	v := s.validator(t, func(c *remote.Config) { c.KeyHashes = oldForms() })
	ready(t, v)

	before := s.count("/apitoken/introspect")
	for range 300 {
		for _, junk := range []string{"sk_live_" + rand.Text(), "hk_" + rand.Text(), "pk_" + rand.Text(), rand.Text(), "sk_live_", "pk_x"} {
			_, err := v.Validate(s.ctx, apitoken.Bearer(junk))
			require.ErrorIs(t, err, apitoken.ErrInvalidToken)
		}
	}
	require.Equal(t, before, s.count("/apitoken/introspect"), "the issuer is not asked about junk")

	// The first one to see a key is the process without a store; the issuer hashes it anew.
	for _, key := range keys {
		tok, err := v.Validate(s.ctx, apitoken.Bearer(key))
		require.NoError(t, err, key)
		require.True(t, tok.IsAPIKey())
		require.Equal(t, "alice", tok.Subject())
		require.True(t, tok.Allows("orders:read"))
		r, err := s.st.Get(s.ctx, store.KindAPIKey, tok.ID())
		require.NoError(t, err)
		require.NotContains(t, string(r.Data), `"hash":`)
		for _, x := range []string{key, key + "x", key[:len(key)-1], key[:len(key)-1] + "!", "Bearer " + key} {
			_, want := s.svc.Validate(s.ctx, apitoken.Bearer(x))
			_, got := v.Validate(s.ctx, apitoken.Bearer(x))
			require.Equal(t, class(want), class(got), x)
		}
	}
	for _, key := range starts {
		_, err := v.Validate(s.ctx, apitoken.Bearer(key))
		require.NoError(t, err)
	}

	// What ends one ends it here; one that is imported later is known as soon as the feed tells of it.
	tok, err := v.Validate(s.ctx, apitoken.Bearer(keys[0]))
	require.NoError(t, err)
	require.NoError(t, s.svc.APIKeys.Revoke(s.ctx, tok.ID(), "lost"))
	eventually(t, "revoked by ID", refused(v, keys[0], apitoken.ErrInvalidToken))
	require.NoError(t, s.svc.Revoke(s.ctx, apitoken.BySubject("alice"), "left"))
	eventually(t, "revoked by subject", refused(v, keys[1], apitoken.ErrInvalidToken))
	late := add("digest", "bob")
	eventually(t, "imported later", func() bool { _, err := v.Validate(s.ctx, apitoken.Bearer(late)); return err == nil })

	// A process that is not told of the forms says no, to all of it.
	plain := s.validator(t, nil)
	ready(t, plain)
	require.True(t, refused(plain, keys[2], apitoken.ErrInvalidToken)())
	require.True(t, refused(plain, late, apitoken.ErrInvalidToken)())

	_, err = remote.NewValidator(remote.Config{Issuer: s.url, Audience: "a", Client: s.auth, KeyHashes: oldForms(), OpaqueFor: -1})
	require.ErrorContains(t, err, "KeyHashes")
}

// The feed tells of imported keys in pages, each of them, however small the pages are.
func TestTheFeedTellsOfImportedKeys(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(c *apitoken.Config) { c.KeyHashes = oldForms() })
	const n = 50
	for i := range n {
		_, x := oldKey("digest", "carol")
		_, err := s.svc.APIKeys.Import(s.ctx, slices.Values([]apitoken.ImportedKey{x}))
		require.NoError(t, err)
		if i%7 == 0 {
			require.NoError(t, s.svc.Revoke(s.ctx, apitoken.BySubject(fmt.Sprint("user", i)), "left"))
		}
	}
	for _, most := range []int{1, 2, 100} {
		seen, rules := map[[8]byte]bool{}, 0
		for at := (store.Position{}); ; {
			a, err := s.svc.Revocations(s.ctx, at, most)
			require.NoError(t, err)
			require.LessOrEqual(t, len(a.Imported), 8*most)
			for _, h := range a.Imported {
				seen[h] = true
			}
			rules += len(a.Rules)
			if at = a.Next; !a.More {
				break
			}
		}
		require.Len(t, seen, n)
		require.Equal(t, 8, rules, "each rule comes once")
	}
}

// Tokens of the host's program from before are taken by a process without a store as they are by the service, and the service's rules
// reach them there.
func TestTokensFromBeforeWithoutAStore(t *testing.T) {
	t.Parallel()
	secret := []byte(rand.Text() + rand.Text())
	until := time.Now().Add(24 * time.Hour)
	trust := func() []apitoken.Trusted {
		p := profile.GolangJWT(until, profile.Key{Alg: "HS256", Key: secret})
		return []apitoken.Trusted{{Issuer: "before", Profile: p, Scopes: apitoken.Scopes{"orders"}}}
	}
	s := newSite(t, func(c *apitoken.Config) { c.Trust = trust() })
	v := s.validator(t, func(c *remote.Config) { c.Trust = trust() })
	ready(t, v)
	sign := func(key []byte, change func(jwt.MapClaims)) string {
		now := time.Now()
		c := jwt.MapClaims{"sub": "alice", "scope": "orders:read", "iat": now.Unix(), "exp": now.Add(time.Hour).Unix()}
		change(c)
		text, err := jwt.NewWithClaims(jwt.SigningMethodHS256, c).SignedString(key)
		require.NoError(t, err)
		return text
	}
	for name, token := range map[string]string{
		"good":            sign(secret, func(jwt.MapClaims) {}),
		"another key":     sign([]byte(rand.Text()+rand.Text()), func(jwt.MapClaims) {}),
		"expired":         sign(secret, func(c jwt.MapClaims) { c["exp"] = time.Now().Add(-time.Hour).Unix() }),
		"without an end":  sign(secret, func(c jwt.MapClaims) { delete(c, "exp") }),
		"without subject": sign(secret, func(c jwt.MapClaims) { delete(c, "sub") }),
		"for long":        sign(secret, func(c jwt.MapClaims) { c["exp"] = time.Now().Add(1000 * time.Hour).Unix() }),
		"of our own":      s.issue(t, "alice", "orders"),
	} {
		want, wantErr := s.svc.Validate(s.ctx, apitoken.Bearer(token))
		got, err := v.Validate(s.ctx, apitoken.Bearer(token))
		require.Equal(t, class(wantErr), class(err), "%s: %v, %v", name, wantErr, err)
		require.Equal(t, wantErr == nil, slices.Contains([]string{"good", "of our own", "for long"}, name), name) // one that lives for long ends early
		if wantErr == nil {
			require.Equal(t, want.Subject(), got.Subject(), name)
			require.Equal(t, want.Scopes(), got.Scopes(), name)
		}
	}
	alice, bob := sign(secret, func(jwt.MapClaims) {}), sign(secret, func(c jwt.MapClaims) { c["sub"] = "bob" })
	require.NoError(t, s.svc.Revoke(s.ctx, apitoken.BySubject("alice"), "left"))
	require.True(t, refused(s.svc, alice, apitoken.ErrRevoked)())
	eventually(t, "revoked", refused(v, alice, apitoken.ErrRevoked))
	_, err := v.Validate(s.ctx, apitoken.Bearer(bob))
	require.NoError(t, err)
}
