package bench

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/casbin/casbin/v2"
	"github.com/casbin/casbin/v2/model"
	"github.com/go-oauth2/oauth2/v4"
	oauth2models "github.com/go-oauth2/oauth2/v4/models"
	oauth2store "github.com/go-oauth2/oauth2/v4/store"
	golangjwt "github.com/golang-jwt/jwt/v5"
	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jwt"
	"github.com/ory/fosite"
	bolt "go.etcd.io/bbolt"

	"github.com/apitoken-go/apitoken"
)

// issuing is an access token without a refresh token, on a store in memory; ours has its event written with it.
func issuing(tb testing.TB, alg string) group {
	ctx := context.Background()
	var key crypto.Signer = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	if alg == "EdDSA" {
		_, ed, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			tb.Fatal(err)
		}
		key = ed
	}
	roles := map[string]apitoken.Scopes{}
	for _, role := range []string{"clerk", "auditor", "manager"} {
		for _, verb := range []string{"read", "write", "list"} {
			roles[role] = append(roles[role], apitoken.Scope(role+":"+verb))
		}
	}
	held, given := slices.Sorted(maps.Keys(roles)), slices.Concat(roles["auditor"], roles["clerk"], roles["manager"]).String()
	svc := newService(tb, alg, func(c *apitoken.Config) { c.Roles = roles })
	input := make([]byte, 500)
	algX, _ := jwa.LookupSignatureAlgorithm(alg)
	keyX := must(jwk.Import(key))
	method := golangjwt.GetSigningMethod(alg)
	scopes := apitoken.Scopes{"orders:read", "orders:write"}
	return group{name: "Issue/" + alg, rows: []row{
		{name: "raw", f: once(func() error {
			if alg == "EdDSA" {
				ed25519.Sign(key.(ed25519.PrivateKey), input)
				return nil
			}
			h := sha256.Sum256(input)
			_, err := ecdsa.SignASN1(rand.Reader, key.(*ecdsa.PrivateKey), h[:])
			return err
		})},
		{name: "apitoken", f: once(func() error { // its event included
			_, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: scopes})
			return err
		})},
		{name: "apitoken/roles", f: once(func() error { // three of them, nine scopes
			_, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Roles: held})
			return err
		})},
		{name: "golang-jwt/roles", f: once(func() error {
			now := time.Now()
			_, err := golangjwt.NewWithClaims(method, roleClaims{Roles: held, scopeClaims: scopeClaims{Scope: given, ClientID: "web", RegisteredClaims: golangjwt.RegisteredClaims{
				Issuer: issuer, Subject: "alice", Audience: golangjwt.ClaimStrings{audience}, ID: "01jabcdefghijklmnopqrstuvw", IssuedAt: golangjwt.NewNumericDate(now), NotBefore: golangjwt.NewNumericDate(now), ExpiresAt: golangjwt.NewNumericDate(now.Add(time.Minute)),
			}}}).SignedString(key)
			return err
		})},
		{name: "golang-jwt", f: once(func() error {
			now := time.Now()
			_, err := golangjwt.NewWithClaims(method, scopeClaims{Scope: scopes.String(), ClientID: "web", RegisteredClaims: golangjwt.RegisteredClaims{
				Issuer: issuer, Subject: "alice", Audience: golangjwt.ClaimStrings{audience}, ID: "01jabcdefghijklmnopqrstuvw", IssuedAt: golangjwt.NewNumericDate(now), NotBefore: golangjwt.NewNumericDate(now), ExpiresAt: golangjwt.NewNumericDate(now.Add(time.Minute)),
			}}).SignedString(key)
			return err
		})},
		{name: "jwx", f: once(func() error {
			now := time.Now()
			t, err := jwt.NewBuilder().Issuer(issuer).Subject("alice").Audience([]string{audience}).JwtID("01jabcdefghijklmnopqrstuvw").IssuedAt(now).NotBefore(now).Expiration(now.Add(time.Minute)).Claim("scope", scopes.String()).Claim("client_id", "web").Build()
			if err != nil {
				return err
			}
			_, err = jwt.Sign(t, jwt.WithKey(algX, keyX))
			return err
		})},
	}}
}

func BenchmarkIssue(b *testing.B) {
	for _, alg := range []string{"ES256", "EdDSA"} {
		b.Run(alg, issuing(b, alg).bench)
	}
}

// rotating is a durable rotation with its event, from n callers who have sessions of their own.
func rotating(tb testing.TB, engine string, n int) row {
	ctx := context.Background()
	svc := newService(tb, "EdDSA", func(c *apitoken.Config) { c.Store = startEngine(tb, engine)() })
	tokens := make([]string, n)
	for i := range tokens {
		issued, err := svc.Issue(ctx, apitoken.Request{Subject: fmt.Sprint("u", i), Refresh: true})
		if err != nil {
			tb.Fatal(err)
		}
		tokens[i] = issued.Refresh.Reveal()
	}
	return row{name: fmt.Sprint("apitoken/", n), callers: n, f: func(i int) error {
		issued, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: tokens[i]})
		if err == nil {
			tokens[i] = issued.Refresh.Reveal()
		}
		return err
	}}
}

// bareUpdate writes the bytes of a rotation by bbolt's own Update, one commit each.
func bareUpdate(tb testing.TB, n int) row {
	db := must(bolt.Open(filepath.Join(tb.TempDir(), "raw.db"), 0o600, nil))
	tb.Cleanup(func() { _ = db.Close() })
	value := make([]byte, 900)
	var seq atomic.Uint64
	return row{name: fmt.Sprint("raw/", n), callers: n, f: once(func() error {
		return db.Update(func(tx *bolt.Tx) error {
			bucket, err := tx.CreateBucketIfNotExists([]byte("b"))
			if err != nil {
				return err
			}
			return bucket.Put(binary.BigEndian.AppendUint64(nil, seq.Add(1)), value)
		})
	})}
}

// oauth2File is one token of go-oauth2 in its file store, which syncs once a second.
func oauth2File(tb testing.TB, n int) row {
	ctx := context.Background()
	st := must(oauth2store.NewFileTokenStore(filepath.Join(tb.TempDir(), "tokens")))
	var seq atomic.Uint64
	return row{name: fmt.Sprint("go-oauth2/", n), callers: n, f: once(func() error {
		id := fmt.Sprint(seq.Add(1))
		var t oauth2.TokenInfo = &oauth2models.Token{ClientID: "web", UserID: "alice", Access: "a" + id, AccessCreateAt: time.Now(), AccessExpiresIn: time.Hour, Refresh: "r" + id, RefreshCreateAt: time.Now(), RefreshExpiresIn: time.Hour}
		return st.Create(ctx, t)
	})}
}

// durable is what bbolt's users compare.
func durable(tb testing.TB, n int) group {
	return group{name: "Refresh/bbolt", rows: []row{bareUpdate(tb, n), rotating(tb, "bbolt", n), oauth2File(tb, n)}}
}

func BenchmarkRefresh(b *testing.B) {
	for _, n := range []int{1, 64} {
		b.Run("bbolt", durable(b, n).bench)
		for _, engine := range engines {
			if engine == "bbolt" {
				continue
			}
			b.Run(engine, func(b *testing.B) { group{rows: []row{rotating(b, engine, n)}}.bench(b) })
		}
	}
}

// logging is an access token without a refresh token: its event is what is written.
func logging(tb testing.TB, n int) group {
	ctx := context.Background()
	svc := newService(tb, "EdDSA", func(c *apitoken.Config) { c.Store = startEngine(tb, "bbolt")() })
	return group{name: "IssueDurable/bbolt", rows: []row{bareUpdate(tb, n), {name: fmt.Sprint("apitoken/", n), callers: n, f: once(func() error {
		_, err := svc.Issue(ctx, apitoken.Request{Subject: "alice"})
		return err
	})}}}
}

func BenchmarkIssueDurable(b *testing.B) {
	for _, n := range []int{1, 64} {
		b.Run("bbolt", logging(b, n).bench)
	}
}

// knownKey is the validation of an opaque credential that was seen before.
func knownKey(tb testing.TB) group {
	ctx := context.Background()
	svc := newService(tb, "ES256", nil)
	_, secret, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob"})
	if err != nil {
		tb.Fatal(err)
	}
	c := apitoken.Bearer(secret.Reveal())
	st := must(oauth2store.NewMemoryTokenStore())
	if err := st.Create(ctx, &oauth2models.Token{ClientID: "web", UserID: "bob", Access: "key", AccessCreateAt: time.Now(), AccessExpiresIn: time.Hour}); err != nil {
		tb.Fatal(err)
	}
	return group{name: "APIKey", rows: []row{
		{name: "apitoken", f: once(func() error { _, err := svc.Validate(ctx, c); return err })},
		{name: "go-oauth2", f: once(func() error {
			t, err := st.GetByAccess(ctx, "key")
			if err == nil && t == nil {
				err = errors.New("not found")
			}
			return err
		})},
	}}
}

func BenchmarkAPIKey(b *testing.B) { knownKey(b).bench(b) }

const casbinModel = `
[request_definition]
r = sub, obj
[policy_definition]
p = sub, obj
[policy_effect]
e = some(where (p.eft == allow))
[matchers]
m = r.sub == p.sub && keyMatch(r.obj, p.obj)
`

var errScope = errors.New("the scope was refused")

// scopes is one check of a scope against five that are held. fosite's and casbin's spell them with dots and slashes.
func scopes(testing.TB) group {
	t := must(apitoken.NewToken(apitoken.TokenSpec{Subject: "alice", Scopes: apitoken.Scopes{"orders:read", "orders:write", "mail:*", "profile", "admin"}}))
	g := group{name: "Scope"}
	for name, want := range map[string]apitoken.Scope{"exact": "orders:write", "wildcard": "mail:send", "hierarchy": "profile:name"} {
		need := apitoken.AllOf(want)
		g.rows = append(g.rows, row{name: "apitoken/" + name, f: once(func() error { return t.Check(need) })})
	}
	held := []string{"orders.read", "orders.write", "mail.*", "profile", "admin"}
	for name, strategy := range map[string]fosite.ScopeStrategy{"exact": fosite.ExactScopeStrategy, "hierarchy": fosite.HierarchicScopeStrategy, "wildcard": fosite.WildcardScopeStrategy} {
		want := map[string]string{"exact": "orders.write", "hierarchy": "profile.name", "wildcard": "mail.send"}[name]
		g.rows = append(g.rows, row{name: "fosite/" + name, f: once(func() error {
			if !strategy(held, want) {
				return errScope
			}
			return nil
		})})
	}
	e := must(casbin.NewEnforcer(must(model.NewModelFromString(casbinModel))))
	for _, s := range []string{"orders/read", "orders/write", "mail/*", "profile", "admin"} {
		must(e.AddPolicy("alice", s))
	}
	g.rows = append(g.rows, row{name: "casbin/exact", f: once(func() error {
		ok, err := e.Enforce("alice", "orders/write")
		if err == nil && !ok {
			err = errScope
		}
		return err
	})})
	slices.SortFunc(g.rows, func(a, b row) int { return strings.Compare(a.name, b.name) })
	return g
}

func BenchmarkScope(b *testing.B) { scopes(b).bench(b) }

// groups are what TestSideBySide compares.
var groups = []func(testing.TB) group{
	func(tb testing.TB) group { return validating(tb, "ES256") },
	func(tb testing.TB) group { return validating(tb, "EdDSA") },
	func(tb testing.TB) group { return validating(tb, "RS256") },
	func(tb testing.TB) group { return validating(tb, "HS256") },
	many,
	middleware,
	func(tb testing.TB) group { return issuing(tb, "ES256") },
	func(tb testing.TB) group { return issuing(tb, "EdDSA") },
	func(tb testing.TB) group {
		return group{name: "Refresh/memory", rows: []row{rotating(tb, "memory", 1)}}
	},
	func(tb testing.TB) group { return durable(tb, 1) },
	func(tb testing.TB) group { return durable(tb, 64) },
	func(tb testing.TB) group { return logging(tb, 1) },
	func(tb testing.TB) group { return logging(tb, 64) },
	knownKey,
	scopes,
}
