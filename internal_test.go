package apitoken

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"strconv"
	"sync"
	"testing"
	"time"

	is "github.com/stretchr/testify/require"

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
		v := newValidator(Validation{CacheBytes: -1}, "https://api.example.com", nil)
		x := &trust{issuer: "https://auth.example.com", v: v, compromised: map[string]bool{}}
		x.setKeys(list)
		var wg sync.WaitGroup
		wg.Go(func() { x.setKeys(list) })
		wg.Go(func() { x.withdraw([]string{"bad"}) })
		wg.Go(func() { x.setKeys(list) })
		wg.Wait()
		if !x.holds("good") || x.holds("bad") {
			t.Fatal("the key is back, or the other one is gone")
		}
		if v.gen.Load() == 0 {
			t.Fatal("what it verified is not void")
		}
	}
}

// The tokens of a grant share its counter, which holds on to none of them; those that nobody uses are forgotten, and counted
// on when they are used again.
func TestOneCounterForAGrant(t *testing.T) {
	t.Parallel()
	a := newAuditLog(&Service{})
	l := &a.uses
	id := []byte("a grant of a request's memory")
	one := a.counter(useGrant, string(id))
	is.Same(t, one, a.counter(useGrant, string(id)))
	is.NotSame(t, one, a.counter(useAPIKey, string(id)))
	is.Zero(t, l.waiting())
	one.hit(time.Now(), nil)
	one.hit(time.Now(), nil)
	is.Equal(t, 1, l.waiting())

	list := l.toWrite()
	is.Equal(t, []*useCounter{one}, list)
	var u useRecord
	one.take(&u)
	is.Equal(t, uint64(2), u.Count)
	is.Same(t, one, a.counter(useGrant, string(id)), "it was used")
	is.Empty(t, l.toWrite())
	is.Empty(t, l.open, "it was not")

	two := a.counter(useGrant, string(id)) // of another token, while a cache holds the first
	two.hit(time.Now(), nil)
	one.hit(time.Now(), nil)
	is.NotSame(t, one, two)
	is.Equal(t, 2, l.waiting())
	is.ElementsMatch(t, []*useCounter{one, two}, l.toWrite())

	for i := range maxUses + 10 {
		a.counter(useGrant, strconv.Itoa(i)).hit(time.Now(), nil)
	}
	is.Len(t, l.open, maxUses)
	l.toWrite()
	is.Equal(t, maxUses, l.waiting(), "until they are taken")
}
