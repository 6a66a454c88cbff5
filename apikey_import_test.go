package apitoken_test

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/keyhash"
	"github.com/apitoken-go/apitoken/store"
)

// oldForms are those of a host whose slow hash is a salted one that counts how often it is asked.
func oldForms(secret []byte, asked *atomic.Int64) map[string]keyhash.Form {
	return map[string]keyhash.Form{
		"sha256": keyhash.SHA256("sk_live_"), "hmac": keyhash.HMACSHA256("hk_", secret),
		"salted": keyhash.ByStart("pk_", 11, func(key, hash string) bool {
			asked.Add(1)
			salt, want, _ := strings.Cut(hash, "$")
			return salted(salt, key) == want
		}),
		"plain": keyhash.SHA256(""),
	}
}

func salted(salt, key string) string {
	sum := sha256.Sum256([]byte(salt + key))
	return hex.EncodeToString(sum[:])
}

// oldKey is a key of the old program's and what it kept of it.
func oldKey(form string, secret []byte, subject string) (string, apitoken.ImportedKey) {
	x := apitoken.ImportedKey{Form: form, APIKeyRequest: apitoken.APIKeyRequest{Subject: subject, Name: form, Scopes: apitoken.Scopes{"orders"}}}
	var key string
	switch form {
	case "sha256":
		key = "sk_live_" + rand.Text()
		sum := sha256.Sum256([]byte(key))
		x.Hash = hex.EncodeToString(sum[:])
	case "hmac":
		key = "hk_" + rand.Text()
		m := hmac.New(sha256.New, secret)
		m.Write([]byte(key))
		x.Hash = base64.URLEncoding.EncodeToString(m.Sum(nil))
	case "salted":
		key = "pk_" + rand.Text()
		x.Hash, x.Lookup = "salt$"+salted("salt", key), key[:11]
	case "plain":
		key = "0f3c-" + rand.Text() + ".a"
		sum := sha256.Sum256([]byte(key))
		x.Hash = strings.ToUpper(hex.EncodeToString(sum[:]))
	}
	x.Last = key[len(key)-4:]
	return key, x
}

var oldFormNames = []string{"sha256", "hmac", "salted", "plain"}

// TestImportedKeys: a caller goes on with the key that it has, and all that holds for a key of ours holds for that.
func TestImportedKeys(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	secret := []byte(rand.Text())
	var asked atomic.Int64
	st := tempStore(t)
	forms := func(c *apitoken.Config) { c.KeyHashes = oldForms(secret, &asked) }
	svc := serviceOn(t, st, forms)
	other := serviceOn(t, st, forms) // another process

	created := time.Now().Add(-time.Hour).Truncate(time.Millisecond)
	var keys []string
	var list []apitoken.ImportedKey
	for _, form := range oldFormNames {
		key, x := oldKey(form, secret, "alice")
		x.Created = created
		keys, list = append(keys, key), append(list, x)
	}
	n, err := svc.APIKeys.Import(ctx, slices.Values(list))
	require.NoError(t, err)
	require.Equal(t, len(list), n)
	n, err = other.APIKeys.Import(ctx, slices.Values(list))
	require.NoError(t, err)
	require.Zero(t, n, "they are there")

	kept := func(id string) string {
		t.Helper()
		r, err := st.Get(ctx, store.KindAPIKey, id)
		require.NoError(t, err)
		return string(r.Data)
	}
	for i, key := range keys {
		token, err := svc.Validate(ctx, apitoken.Bearer(key))
		require.NoError(t, err, list[i].Form)
		require.True(t, token.IsAPIKey())
		require.Equal(t, "alice", token.Subject())
		require.True(t, token.Allows("orders:read"))
		require.NotContains(t, kept(token.ID()), `"hash":`, "the first use puts our hash in its place")
		require.NotContains(t, kept(token.ID()), key)
		n := asked.Load()
		require.NoError(t, validate(svc, apitoken.NewSecret(key)))
		require.NoError(t, validate(other, apitoken.NewSecret(key)))
		require.Equal(t, n, asked.Load(), "and the host's is not asked again")
		for _, wrong := range []string{key + "x", key[:len(key)-1], key[:len(key)-1] + "!", strings.ToLower(key)} {
			require.ErrorIs(t, validate(svc, apitoken.NewSecret(wrong)), apitoken.ErrInvalidToken, wrong)
		}
		shown, err := svc.APIKeys.Get(ctx, token.ID())
		require.NoError(t, err)
		require.Equal(t, key[len(key)-4:], shown.Last)
		require.True(t, created.Equal(shown.Created))
		target, err := svc.TargetOf(ctx, key)
		require.NoError(t, err)
		require.Equal(t, apitoken.ByToken(token.ID()), target)
	}
	n, err = svc.APIKeys.Import(ctx, slices.Values(list))
	require.NoError(t, err)
	require.Zero(t, n, "they are known again after their first use")

	// A rotation makes it one of ours; the old text ends.
	token, err := svc.Validate(ctx, apitoken.Bearer(keys[0]))
	require.NoError(t, err)
	next, text, err := svc.APIKeys.Rotate(ctx, token.ID(), 0)
	require.NoError(t, err)
	require.NoError(t, validate(svc, text))
	require.Equal(t, text.Reveal()[len(text.Reveal())-4:], next.Last)
	require.ErrorIs(t, validate(svc, apitoken.NewSecret(keys[0])), apitoken.ErrInvalidToken)

	// A leak is found where the form has a prefix, before and after the first use.
	fresh, x := oldKey("salted", secret, "bob")
	_, err = svc.APIKeys.Import(ctx, slices.Values([]apitoken.ImportedKey{x}))
	require.NoError(t, err)
	n, err = svc.RevokeLeaked(ctx, []byte("curl -u "+keys[1]+": https://api.example.com?k="+fresh+"&x=sk_live_junk hk_"), "in a log")
	require.NoError(t, err)
	require.Equal(t, 2, n)
	for _, key := range []string{keys[1], fresh} {
		require.ErrorIs(t, validate(svc, apitoken.NewSecret(key)), apitoken.ErrRevoked)
		require.Eventually(t, func() bool { return validate(other, apitoken.NewSecret(key)) != nil }, time.Minute, time.Millisecond)
	}

	// And the rules on its subject.
	require.NoError(t, validate(svc, apitoken.NewSecret(keys[2])))
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice").IssuedBefore(created.Add(time.Minute)), "left"))
	require.ErrorIs(t, validate(svc, apitoken.NewSecret(keys[2])), apitoken.ErrRevoked)
	require.ErrorIs(t, validate(svc, apitoken.NewSecret(keys[3])), apitoken.ErrRevoked)
}

// TestImportedKeysOfOneStart: several are told apart by their hashes; a ninth is refused.
func TestImportedKeysOfOneStart(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	var asked atomic.Int64
	svc := service(t, func(c *apitoken.Config) { c.KeyHashes = oldForms(nil, &asked) })
	var list []apitoken.ImportedKey
	for i := range 9 {
		key := fmt.Sprintf("pk_same0000_%d", i)
		list = append(list, apitoken.ImportedKey{Form: "salted", Hash: "salt$" + salted("salt", key), Lookup: key[:11],
			APIKeyRequest: apitoken.APIKeyRequest{Subject: fmt.Sprint("user", i)}})
	}
	n, err := svc.APIKeys.Import(ctx, slices.Values(list))
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
	require.Equal(t, 8, n)
	for i := range 9 {
		token, err := svc.Validate(ctx, apitoken.Bearer(fmt.Sprintf("pk_same0000_%d", i)))
		if i == 8 {
			require.ErrorIs(t, err, apitoken.ErrInvalidToken)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint("user", i), token.Subject())
	}
}

// TestImportRefuses names the key that can't be taken, and takes none that is a caller's or over a limit.
func TestImportRefuses(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	var asked atomic.Int64
	svc := service(t, func(c *apitoken.Config) {
		c.KeyHashes = oldForms(nil, &asked)
		c.KeyHashes["panics"] = keyhash.Form{Lookup: func(string) string { panic("the host's own") }, Verify: func(string, string) bool { return true }, Prefix: "zz_"}
		c.Limits.APIKeysPerSubject = 2
	})
	one := func(change func(*apitoken.ImportedKey)) iter.Seq[apitoken.ImportedKey] {
		_, good := oldKey("sha256", nil, "carol")
		_, bad := oldKey("salted", nil, "carol")
		change(&bad)
		return slices.Values([]apitoken.ImportedKey{good, bad})
	}
	for name, change := range map[string]func(*apitoken.ImportedKey){
		"form": func(x *apitoken.ImportedKey) { x.Form = "md5" }, "hash": func(x *apitoken.ImportedKey) { x.Form, x.Hash = "sha256", "00ff" },
		"no hash": func(x *apitoken.ImportedKey) { x.Hash = "" }, "no lookup": func(x *apitoken.ImportedKey) { x.Lookup = "" },
		"a long lookup": func(x *apitoken.ImportedKey) { x.Lookup = strings.Repeat("x", 513) }, "subject": func(x *apitoken.ImportedKey) { x.Subject = "" },
		"expired": func(x *apitoken.ImportedKey) { x.Expires = time.Now().Add(-time.Hour) }, "scope": func(x *apitoken.ImportedKey) { x.Scopes = apitoken.Scopes{"a b"} },
		"last": func(x *apitoken.ImportedKey) { x.Last = "the whole of it" },
	} {
		_, err := svc.APIKeys.Import(ctx, one(change))
		require.ErrorIs(t, err, apitoken.ErrInvalidRequest, name)
		require.Contains(t, fmt.Sprintf("%v", err), "imported key 1", name)
		require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("carol"), "room for the next"))
	}
	var list []apitoken.ImportedKey
	for range 3 {
		_, x := oldKey("hmac", nil, "dave")
		list = append(list, x)
	}
	n, err := svc.APIKeys.Import(ctx, slices.Values(list))
	require.ErrorIs(t, err, apitoken.ErrLimited)
	require.Equal(t, 2, n)

	alice := issue(t, svc, apitoken.Request{Subject: "alice"})
	_, err = svc.APIKeys.For(alice.Token).Import(ctx, slices.Values(list))
	require.ErrorIs(t, err, apitoken.ErrDenied)
	require.ErrorIs(t, validate(svc, apitoken.NewSecret("zz_1")), apitoken.ErrUnavailable)
	_, err = apitoken.New(apitoken.Config{Issuer: testIssuer, Audience: testAudience, Store: tempStore(t), InsecureKeysInStore: true, KeyHashes: map[string]keyhash.Form{"x": {}}})
	require.ErrorContains(t, err, "KeyHashes")
}

// TestImportRaces: two processes import the same keys while callers use them.
func TestImportRaces(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	secret := []byte(rand.Text())
	var asked atomic.Int64
	st := tempStore(t)
	forms := func(c *apitoken.Config) { c.KeyHashes = oldForms(secret, &asked) }
	services := []*apitoken.Service{serviceOn(t, st, forms), serviceOn(t, st, forms)}
	var keys []string
	var list []apitoken.ImportedKey
	for i := range 300 {
		key, x := oldKey(oldFormNames[i%4], secret, fmt.Sprint("user", i%7))
		keys, list = append(keys, key), append(list, x)
	}
	var total atomic.Int64
	var wg sync.WaitGroup
	for _, svc := range services {
		wg.Go(func() {
			n, err := svc.APIKeys.Import(ctx, slices.Values(list))
			if err != nil {
				t.Error(err)
			}
			total.Add(int64(n))
		})
		wg.Go(func() {
			for _, key := range keys[:50] {
				_, _ = svc.Validate(ctx, apitoken.Bearer(key)) // there or not yet
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, len(list), total.Load(), "each is imported once")
	for i, key := range keys {
		require.Eventually(t, func() bool { return validate(services[i%2], apitoken.NewSecret(key)) == nil }, time.Minute, time.Millisecond)
	}
}
