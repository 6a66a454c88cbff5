package bench

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"flag"
	"fmt"
	"iter"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/keyhash"
	"github.com/apitoken-go/apitoken/store/boltstore"
)

// importForm is how another program keeps keys: keep makes its hash of one.
type importForm struct {
	form keyhash.Form
	keep func(key string) (hash, lookup string)
	slow bool // its hash takes its time to be made, not to be imported: most rows have that of another key
}

func importForms() map[string]importForm {
	secret := []byte(rand.Text())
	return map[string]importForm{
		"sha256": {keyhash.SHA256("k_"), func(key string) (string, string) {
			sum := sha256.Sum256([]byte(key))
			return hex.EncodeToString(sum[:]), ""
		}, false},
		"hmac": {keyhash.HMACSHA256("k_", secret), func(key string) (string, string) {
			m := hmac.New(sha256.New, secret)
			m.Write([]byte(key))
			return base64.StdEncoding.EncodeToString(m.Sum(nil)), ""
		}, false},
		"bcrypt": {keyhash.ByStart("k_", 14, func(key, hash string) bool {
			return bcrypt.CompareHashAndPassword([]byte(hash), []byte(key)) == nil
		}), func(key string) (string, string) {
			hash, err := bcrypt.GenerateFromPassword([]byte(key), bcrypt.DefaultCost)
			if err != nil {
				panic(err)
			}
			return string(hash), key[:14]
		}, true},
		"argon2id": {keyhash.ByStart("k_", 14, func(key, hash string) bool {
			salt, want, _ := strings.Cut(hash, "$")
			return hex.EncodeToString(argon2.IDKey([]byte(key), []byte(salt), 1, 64<<10, 2, 32)) == want
		}), func(key string) (string, string) {
			salt := rand.Text()
			return salt + "$" + hex.EncodeToString(argon2.IDKey([]byte(key), []byte(salt), 1, 64<<10, 2, 32)), key[:14]
		}, true},
	}
}

// importKeys bounds the keys of a run: for figures, -importkeys 100000.
var importKeys = flag.Int("importkeys", 2000, "API keys of each form that BenchmarkImport imports")

// BenchmarkImport measures the import of a table of API keys into a bbolt file, the first use of a key, in which its hash is replaced,
// and the next one. keys/s is of the import.
func BenchmarkImport(b *testing.B) {
	ctx := context.Background()
	for name, f := range importForms() {
		good := *importKeys // of the keys: as many can be used
		if f.slow {
			good = min(good, 20)
		}
		keys, rows := make([]string, good), make([]apitoken.ImportedKey, *importKeys)
		for i := range rows {
			key := "k_" + rand.Text()
			var hash, lookup string
			if i < good {
				keys[i] = key
				hash, lookup = f.keep(key)
			} else {
				hash, lookup = rows[i%good].Hash, key[:14]
			}
			rows[i] = apitoken.ImportedKey{Form: name, Hash: hash, Lookup: lookup, APIKeyRequest: apitoken.APIKeyRequest{Subject: fmt.Sprint("user", i/10), Scopes: apitoken.Scopes{"orders"}}}
		}
		b.Run(name, func(of *testing.B) {
			b := of
			var svc *apitoken.Service
			b.Run(fmt.Sprint("import", len(rows)), func(b *testing.B) {
				for range b.N {
					b.StopTimer()
					svc = importService(of, name, f.form)
					b.StartTimer()
					n, err := svc.APIKeys.Import(ctx, seqOf(rows))
					if err != nil || n != len(rows) {
						b.Fatal(n, err)
					}
				}
				b.ReportMetric(float64(b.N*len(rows))/b.Elapsed().Seconds(), "keys/s")
			})
			used := 0
			b.Run("first", func(b *testing.B) {
				for range b.N {
					if used == len(keys) {
						b.Skip("every key was used")
					}
					if _, err := svc.Validate(ctx, apitoken.Bearer(keys[used])); err != nil {
						b.Fatal(err)
					}
					used++
				}
			})
			b.Run("again", func(b *testing.B) {
				for range b.N {
					if _, err := svc.Validate(ctx, apitoken.Bearer(keys[0])); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

func importService(b *testing.B, name string, form keyhash.Form) *apitoken.Service {
	st, err := boltstore.Open(filepath.Join(b.TempDir(), "tokens.db"), nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = st.Close() })
	svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, InsecureKeysInStore: true,
		KeyHashes: map[string]keyhash.Form{name: form}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = svc.Close() })
	return svc
}

func seqOf(rows []apitoken.ImportedKey) iter.Seq[apitoken.ImportedKey] {
	return func(yield func(apitoken.ImportedKey) bool) {
		for _, x := range rows {
			if !yield(x) {
				return
			}
		}
	}
}
