package proofs

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/keyhash"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
	"github.com/apitoken-go/apitoken/store/move"
)

var pepper = []byte("of the program from before")

// oldForms are how another program may have kept its keys. bcrypt and argon2id are as cheap as they may be: here they are stored, not
// attacked.
var oldForms = map[string]keyhash.Form{
	"sha256": keyhash.SHA256("sk_"), "hmac": keyhash.HMACSHA256("hk_", pepper),
	"bcrypt": keyhash.ByStart("bk_", 14, func(key, hash string) bool {
		return bcrypt.CompareHashAndPassword([]byte(hash), []byte(key)) == nil
	}),
	"argon2id": keyhash.ByStart("ak_", 14, func(key, hash string) bool {
		salt, want, _ := strings.Cut(hash, "$")
		return argonHash(salt, key) == want
	}),
}

func argonHash(salt, key string) string {
	return hex.EncodeToString(argon2.IDKey([]byte(key), []byte(salt), 1, 64, 1, 32))
}

// oldKeys are keys of a form, with what the program kept of them.
func oldKeys(t testing.TB, form string, n int) (keys []string, rows []apitoken.ImportedKey) {
	for i := range n {
		x := apitoken.ImportedKey{Form: form, APIKeyRequest: apitoken.APIKeyRequest{Subject: fmt.Sprint("user", i%10), Scopes: apitoken.Scopes{"orders"},
			Metadata: map[string]string{"form": form}}}
		key := oldForms[form].Prefix + rand.Text()
		switch form {
		case "sha256":
			sum := sha256.Sum256([]byte(key))
			x.Hash = hex.EncodeToString(sum[:])
		case "hmac":
			m := hmac.New(sha256.New, pepper)
			m.Write([]byte(key))
			x.Hash = hex.EncodeToString(m.Sum(nil))
		case "bcrypt":
			hash, err := bcrypt.GenerateFromPassword([]byte(key), bcrypt.MinCost)
			require.NoError(t, err)
			x.Hash, x.Lookup = string(hash), key[:14]
		case "argon2id":
			x.Hash, x.Lookup = "salt$"+argonHash("salt", key), key[:14]
		}
		keys, rows = append(keys, key), append(rows, x)
	}
	return keys, rows
}

func importService(t testing.TB, st store.Store) *apitoken.Service {
	svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, Seal: seal(),
		KeyHashes: oldForms, Validation: apitoken.Validation{MaxStaleness: 10 * time.Second}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = svc.Close() })
	return svc
}

// TestImportOnEveryEngine: two processes import the same keys at the same time, and each is there once; every key works in both, gives
// up its old hash at its first use, is found by its metadata, ends by a rule, and moves with the service to another store.
func TestImportOnEveryEngine(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	each(t, func(t *testing.T, e engine) {
		from := e.open(t, "")
		services := []*apitoken.Service{importService(t, from), importService(t, e.open(t, ""))}
		var keys []string
		var rows []apitoken.ImportedKey
		for form, n := range map[string]int{"sha256": 100, "hmac": 100, "bcrypt": 3, "argon2id": 3} {
			k, r := oldKeys(t, form, n)
			keys, rows = append(keys, k...), append(rows, r...)
		}
		var total atomic.Int64
		var all sync.WaitGroup
		for _, svc := range services {
			all.Go(func() {
				writes(t, func() error {
					n, err := svc.APIKeys.Import(ctx, slices.Values(rows))
					total.Add(int64(n))
					return err
				})
			})
		}
		all.Wait()
		require.LessOrEqual(t, total.Load(), int64(len(rows)), "none is imported twice")
		writes(t, func() error {
			n, err := services[0].APIKeys.Import(ctx, slices.Values(rows))
			require.Zero(t, n, "all are there")
			return err
		})

		valid := func(svc *apitoken.Service, key string) (token apitoken.Token) {
			t.Helper()
			writes(t, func() (err error) {
				token, err = svc.Validate(ctx, apitoken.Bearer(key))
				return err
			})
			return token
		}
		for i, key := range keys {
			token := valid(services[i%2], key)
			require.Equal(t, rows[i].Subject, token.Subject())
			r, err := from.Get(ctx, store.KindAPIKey, token.ID())
			require.NoError(t, err)
			require.NotContains(t, string(r.Data), `"hash":`, "the first use puts our hash in its place")
			require.Equal(t, token.ID(), valid(services[1-i%2], key).ID())
		}

		// Found by metadata, a bounded number looked at in each call.
		found := map[string]int{}
		for _, form := range []string{"sha256", "bcrypt", "none"} {
			for q := (apitoken.APIKeyQuery{Metadata: map[string]string{"form": form}, Limit: 50}); ; {
				var list []apitoken.APIKey
				var next string
				writes(t, func() (err error) {
					list, next, err = services[1].APIKeys.Find(ctx, q)
					return err
				})
				found[form] += len(list)
				if q.Cursor = next; next == "" {
					break
				}
			}
		}
		require.Equal(t, map[string]int{"sha256": 100, "bcrypt": 3, "none": 0}, found)

		writes(t, func() error { return services[0].Revoke(ctx, apitoken.BySubject("user0"), "left") })
		writes(t, func() error { return services[1].Sync(ctx) })
		to := memstore.New()
		_, err := move.Copy(ctx, from, to)
		require.NoError(t, err)
		services = append(services, importService(t, to))
		for i, key := range keys {
			for _, svc := range services[2:] {
				if rows[i].Subject != "user0" {
					valid(svc, key)
					continue
				}
				_, err := svc.Validate(ctx, apitoken.Bearer(key))
				require.ErrorIs(t, err, apitoken.ErrRevoked)
			}
		}
	})
}

var importKeys = flag.Int("importkeys", 500, "API keys that BenchmarkImportOnEveryEngine imports")

// BenchmarkImportOnEveryEngine measures the import of a table of SHA-256 hashes, and the first use of a key, in which its hash is
// replaced. For figures, -importkeys 100000 -benchtime 1x.
func BenchmarkImportOnEveryEngine(b *testing.B) {
	ctx := context.Background()
	for name, start := range engines {
		b.Run(name, func(b *testing.B) {
			svc := importService(b, start(b).open(b, ""))
			var imports, firsts time.Duration
			imported, used := 0, 0
			for b.Loop() {
				keys, rows := oldKeys(b, "sha256", *importKeys)
				began := time.Now()
				writes(b, func() error {
					n, err := svc.APIKeys.Import(ctx, slices.Values(rows))
					imported += n
					return err
				})
				imports += time.Since(began)
				began = time.Now()
				for _, key := range keys[:min(len(keys), 200)] {
					_, err := svc.Validate(ctx, apitoken.Bearer(key))
					require.NoError(b, err)
					used++
				}
				firsts += time.Since(began)
			}
			b.ReportMetric(float64(imported)/imports.Seconds(), "keys/s")
			b.ReportMetric(float64(firsts.Microseconds())/float64(used), "µs/first")
		})
	}
}
