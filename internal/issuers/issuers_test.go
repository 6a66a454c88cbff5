package issuers

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/apitoken-go/apitoken/internal/jws"
)

// A key set that was fetched before a key was declared compromised, and comes to its place afterwards, does not bring the
// key back: compromised keys win over any set, for ever.
func TestACompromisedKeyLosesEveryRace(t *testing.T) {
	t.Parallel()
	var list []*jws.PublicKey
	for _, kid := range []string{"good", "bad"} {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		pub, err := jws.NewPublicKey(kid, "ES256", &k.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, pub)
	}
	rounds := 5000
	if testing.Short() {
		rounds = 500
	}
	for range rounds {
		var voided atomic.Int32
		var x Issuer
		x.Init(Config{Name: "https://auth.example.com", Void: func() { voided.Add(1) }})
		x.SetKeys(list)
		var wg sync.WaitGroup
		wg.Go(func() { x.SetKeys(list) })
		wg.Go(func() { x.Withdraw([]string{"bad"}) })
		wg.Go(func() { x.SetKeys(list) })
		wg.Wait()
		if !x.Holds("good") || x.Holds("bad") {
			t.Fatal("the key is back, or the other one is gone")
		}
		if voided.Load() == 0 {
			t.Fatal("what it verified is not void")
		}
	}
}
