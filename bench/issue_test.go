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
	"fmt"
	"path/filepath"
	"sync"
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

func BenchmarkIssue(b *testing.B) {
	ctx := context.Background()
	ec := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	for alg, key := range map[string]crypto.Signer{"ES256": ec, "EdDSA": ed} {
		svc := newService(b, alg, nil)
		input := make([]byte, 500)
		algX, _ := jwa.LookupSignatureAlgorithm(alg)
		keyX := must(jwk.Import(key))
		method := golangjwt.GetSigningMethod(alg)
		scopes := apitoken.Scopes{"orders:read", "orders:write"}
		for _, x := range []struct {
			name string
			f    func() error
		}{
			{"raw", func() error {
				if alg == "EdDSA" {
					ed25519.Sign(ed, input)
					return nil
				}
				h := sha256.Sum256(input)
				_, err := ecdsa.SignASN1(rand.Reader, ec, h[:])
				return err
			}},
			{"apitoken", func() error { // its event included
				_, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: scopes})
				return err
			}},
			{"golang-jwt", func() error {
				now := time.Now()
				_, err := golangjwt.NewWithClaims(method, scopeClaims{Scope: scopes.String(), ClientID: "web", RegisteredClaims: golangjwt.RegisteredClaims{
					Issuer: issuer, Subject: "alice", Audience: golangjwt.ClaimStrings{audience}, ID: "01jabcdefghijklmnopqrstuvw", IssuedAt: golangjwt.NewNumericDate(now), NotBefore: golangjwt.NewNumericDate(now), ExpiresAt: golangjwt.NewNumericDate(now.Add(time.Minute)),
				}}).SignedString(key)
				return err
			}},
			{"jwx", func() error {
				now := time.Now()
				t, err := jwt.NewBuilder().Issuer(issuer).Subject("alice").Audience([]string{audience}).JwtID("01jabcdefghijklmnopqrstuvw").IssuedAt(now).NotBefore(now).Expiration(now.Add(time.Minute)).Claim("scope", scopes.String()).Claim("client_id", "web").Build()
				if err != nil {
					return err
				}
				_, err = jwt.Sign(t, jwt.WithKey(algX, keyX))
				return err
			}},
		} {
			b.Run(alg+"/"+x.name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if err := x.f(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// callers runs f in so many goroutines until b.N calls are done.
func callers(b *testing.B, n int, f func(caller int) error) {
	b.Helper()
	b.ReportAllocs()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ResetTimer()
	for i := range n {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := f(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}

// BenchmarkRefresh is a durable rotation with its event. Each caller has sessions of its own.
func BenchmarkRefresh(b *testing.B) {
	ctx := context.Background()
	for _, n := range []int{1, 64} {
		for _, engine := range engines {
			b.Run(fmt.Sprintf("%s/apitoken/%d", engine, n), func(b *testing.B) {
				svc := newService(b, "EdDSA", func(c *apitoken.Config) { c.Store = startEngine(b, engine)() })
				tokens := make([]string, n)
				for i := range tokens {
					issued, err := svc.Issue(ctx, apitoken.Request{Subject: fmt.Sprint("u", i), Refresh: true})
					if err != nil {
						b.Fatal(err)
					}
					tokens[i] = issued.Refresh.Reveal()
				}
				callers(b, n, func(i int) error {
					issued, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: tokens[i]})
					if err == nil {
						tokens[i] = issued.Refresh.Reveal()
					}
					return err
				})
			})
		}
		b.Run(fmt.Sprintf("bbolt/raw/%d", n), func(b *testing.B) { // the same bytes by bare Update, one commit each
			db := must(bolt.Open(filepath.Join(b.TempDir(), "raw.db"), 0o600, nil))
			defer db.Close()
			value := make([]byte, 900)
			var seq atomic.Uint64
			callers(b, n, func(int) error {
				return db.Update(func(tx *bolt.Tx) error {
					bucket, err := tx.CreateBucketIfNotExists([]byte("b"))
					if err != nil {
						return err
					}
					return bucket.Put(binary.BigEndian.AppendUint64(nil, seq.Add(1)), value)
				})
			})
		})
		b.Run(fmt.Sprintf("file/go-oauth2/%d", n), func(b *testing.B) { // its file store syncs once a second
			st := must(oauth2store.NewFileTokenStore(filepath.Join(b.TempDir(), "tokens")))
			var seq atomic.Uint64
			callers(b, n, func(int) error {
				id := fmt.Sprint(seq.Add(1))
				var t oauth2.TokenInfo = &oauth2models.Token{ClientID: "web", UserID: "alice", Access: "a" + id, AccessCreateAt: time.Now(), AccessExpiresIn: time.Hour, Refresh: "r" + id, RefreshCreateAt: time.Now(), RefreshExpiresIn: time.Hour}
				return st.Create(ctx, t)
			})
		})
	}
}

// BenchmarkIssueDurable is an access token without a refresh token: its event is what is written.
func BenchmarkIssueDurable(b *testing.B) {
	ctx := context.Background()
	for _, n := range []int{1, 64} {
		b.Run(fmt.Sprintf("bbolt/apitoken/%d", n), func(b *testing.B) {
			svc := newService(b, "EdDSA", func(c *apitoken.Config) { c.Store = startEngine(b, "bbolt")() })
			callers(b, n, func(int) error {
				_, err := svc.Issue(ctx, apitoken.Request{Subject: "alice"})
				return err
			})
		})
	}
}

func BenchmarkAPIKey(b *testing.B) {
	ctx := context.Background()
	svc := newService(b, "ES256", nil)
	_, secret, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob"})
	if err != nil {
		b.Fatal(err)
	}
	c := apitoken.Bearer(secret.Reveal())
	b.Run("apitoken", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := svc.Validate(ctx, c); err != nil {
				b.Fatal(err)
			}
		}
	})
	st := must(oauth2store.NewMemoryTokenStore())
	if err := st.Create(ctx, &oauth2models.Token{ClientID: "web", UserID: "bob", Access: "key", AccessCreateAt: time.Now(), AccessExpiresIn: time.Hour}); err != nil {
		b.Fatal(err)
	}
	b.Run("go-oauth2", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if t, err := st.GetByAccess(ctx, "key"); err != nil || t == nil {
				b.Fatal(err)
			}
		}
	})
}

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

func BenchmarkScope(b *testing.B) {
	tok := must(apitoken.NewToken(apitoken.TokenSpec{Subject: "alice", Scopes: apitoken.Scopes{"orders:read", "orders:write", "mail:*", "profile", "admin"}}))
	need := apitoken.AllOf("orders:write")
	b.Run("apitoken/exact", func(b *testing.B) {
		for b.Loop() {
			if tok.Check(need) != nil {
				b.Fatal("refused")
			}
		}
	})
	wild := apitoken.AllOf("mail:send")
	b.Run("apitoken/wildcard", func(b *testing.B) {
		for b.Loop() {
			if tok.Check(wild) != nil {
				b.Fatal("refused")
			}
		}
	})
	below := apitoken.AllOf("profile:name")
	b.Run("apitoken/hierarchy", func(b *testing.B) {
		for b.Loop() {
			if tok.Check(below) != nil {
				b.Fatal("refused")
			}
		}
	})
	held := []string{"orders.read", "orders.write", "mail.*", "profile", "admin"}
	for name, strategy := range map[string]fosite.ScopeStrategy{"exact": fosite.ExactScopeStrategy, "hierarchy": fosite.HierarchicScopeStrategy, "wildcard": fosite.WildcardScopeStrategy} {
		want := map[string]string{"exact": "orders.write", "hierarchy": "profile.name", "wildcard": "mail.send"}[name]
		b.Run("fosite/"+name, func(b *testing.B) {
			for b.Loop() {
				if !strategy(held, want) {
					b.Fatal("refused")
				}
			}
		})
	}
	e := must(casbin.NewEnforcer(must(model.NewModelFromString(casbinModel))))
	for _, s := range []string{"orders/read", "orders/write", "mail/*", "profile", "admin"} {
		must(e.AddPolicy("alice", s))
	}
	b.Run("casbin/exact", func(b *testing.B) {
		for b.Loop() {
			if ok, err := e.Enforce("alice", "orders/write"); err != nil || !ok {
				b.Fatal("refused")
			}
		}
	})
}
