package clients

import (
	"context"
	"errors"
	"testing"
	"time"

	is "github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/clientauth"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/store"
)

// names is a Directory whose clients are shown by their names.
func names() *Directory[string] {
	proofs := clientauth.New(clientauth.Config{Now: time.Now, Namespace: func() string { return "ns" }, Ended: func(string) bool { return false },
		Seal: func(*opaque.Key) string { return "" }, Read: func(context.Context, string) (*opaque.Key, bool, error) { return nil, false, nil }})
	return New(Config[string]{Public: func(_ string, r *Record) string { return r.Name }, Proofs: proofs, Now: time.Now})
}

func apply(t *testing.T, d *Directory[string], id string, r *Record) {
	t.Helper()
	r.V = 1
	w, err := ClientForm.Write(store.Record{ID: id}, r)
	is.NoError(t, err)
	is.NoError(t, d.Apply(w.Record()))
}

func generated(n byte) clientauth.Secret {
	return clientauth.Secret{ID: append(make([]byte, 15), n), Hash: [32]byte{n}}
}

// Names have to look like a client with a chosen secret for as long as there is one.
func TestClientsWithAChosenSecretAreCounted(t *testing.T) {
	t.Parallel()
	d := names()
	slow := clientauth.Secret{Hash: [32]byte{1}, Salt: []byte{2}, Rounds: 3}
	apply(t, d, "a", &Record{Secrets: []clientauth.Secret{generated(1)}})
	is.Zero(t, d.chosen.Load())
	apply(t, d, "b", &Record{Secrets: []clientauth.Secret{slow, slow}})
	is.EqualValues(t, 1, d.chosen.Load())
	apply(t, d, "b", &Record{Secrets: []clientauth.Secret{slow, generated(2)}})
	is.EqualValues(t, 1, d.chosen.Load())
	apply(t, d, "b", &Record{Secrets: []clientauth.Secret{generated(2)}})
	is.Zero(t, d.chosen.Load(), "the last chosen secret is gone")
}

// A generated secret finds its clients, and its registration token too, for as long as a record has it.
func TestASecretFindsItsClients(t *testing.T) {
	t.Parallel()
	d := names()
	one, two := generated(1), generated(2)
	apply(t, d, "a", &Record{Secrets: []clientauth.Secret{one}, Registration: &two})
	apply(t, d, "b", &Record{Secrets: []clientauth.Secret{one, one}})
	is.Equal(t, []string{"a", "b"}, d.With(opaque.ID(one.ID)))
	is.Equal(t, []string{"a"}, d.With(opaque.ID(two.ID)))

	apply(t, d, "a", &Record{Secrets: []clientauth.Secret{two}})
	is.Equal(t, []string{"b"}, d.With(opaque.ID(one.ID)))
	is.Equal(t, []string{"a"}, d.With(opaque.ID(two.ID)))
	d.SetAside(store.Record{ID: "b"}, errors.New("damaged"))
	is.Empty(t, d.With(opaque.ID(one.ID)))
	d.Reset()
	is.Empty(t, d.With(opaque.ID(two.ID)))
	is.Nil(t, d.Lookup("a"))
}

// A client whose record cannot be read is unavailable for whoever names it, and its ID stays taken.
func TestAClientThatCannotBeReadIsSetAside(t *testing.T) {
	t.Parallel()
	d := names()
	apply(t, d, "a", &Record{Name: "App", Expires: 1})
	is.Equal(t, "App", d.Lookup("a").Client)
	is.Equal(t, 1, d.Passing())
	r := store.Record{Kind: store.KindClient, ID: "a", Data: []byte(`{"v":9}`)}
	err := d.Apply(r)
	is.ErrorIs(t, err, fault.Unavailable)
	is.Equal(t, "App", d.Lookup("a").Client, "until it is set aside")

	d.SetAside(r, err)
	is.NotNil(t, d.Lookup("a"))
	is.Zero(t, d.Passing())
	for _, call := range []func() error{
		func() error { _, err := d.Enabled("a"); return err },
		func() error { _, err := d.Find(t.Context(), "a"); return err },
	} {
		is.ErrorIs(t, call(), fault.Unavailable)
	}
	_, err = d.Enabled("b")
	is.ErrorIs(t, err, fault.InvalidClient)
}

func TestRotate(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_000_000)
	for name, x := range map[string]struct {
		has     []int64 // ends of the secrets, ms from now; 0: never
		overlap time.Duration
		want    []int64
	}{
		"the first":                       {nil, time.Hour, []int64{0}},
		"the only one goes on":            {[]int64{0}, time.Hour, []int64{3_600_000, 0}},
		"of two the newer goes on":        {[]int64{500, 0}, time.Second, []int64{1000, 0}},
		"not longer than its own end":     {[]int64{500}, time.Second, []int64{500, 0}},
		"one that has ended does not":     {[]int64{-1}, time.Hour, []int64{0}},
		"without overlap it ends at once": {[]int64{0}, 0, []int64{0}},
	} {
		var r Record
		end := func(ms int64) int64 {
			if ms == 0 {
				return 0
			}
			return now.UnixMilli() + ms
		}
		for _, ms := range x.has {
			r.Secrets = append(r.Secrets, clientauth.Secret{Expires: end(ms)})
		}
		r.Rotate(generated(9), now, x.overlap)
		var got []int64
		for _, s := range r.Secrets {
			got = append(got, s.Expires)
		}
		var want []int64
		for _, ms := range x.want {
			want = append(want, end(ms))
		}
		is.Equal(t, want, got, name)
		is.Equal(t, generated(9), r.Secrets[len(r.Secrets)-1], name)
	}
}

// What the host changes of a client that manages itself is the most that it may have; what it leaves alone is not.
func TestDecide(t *testing.T) {
	t.Parallel()
	token := generated(1)
	old := Record{Scopes: []string{"a", "b"}, GrantTypes: []string{"x", "y"}}
	next := old
	next.Scopes = []string{"a"}
	next.Decide(&old)
	is.Equal(t, Most{}, next.Most, "it can't change itself")

	old.Registration = &token
	next = old
	next.Scopes, next.GrantTypes = []string{"b", "a"}, []string{"y", "x"}
	next.Decide(&old)
	is.Equal(t, Most{}, next.Most, "the same in another order")
	next.Scopes, next.GrantTypes, next.BindDPoP = nil, []string{"x"}, true
	next.Decide(&old)
	is.Equal(t, Most{Scopes: &[]string{}, GrantTypes: &[]string{"x"}, BindDPoP: true}, next.Most)
}

// A secret that leaked is remembered, up to the latest sixteen; a registration token is not: nobody declares one.
func TestWithdraw(t *testing.T) {
	t.Parallel()
	now := time.Now()
	token := generated(200)
	r := Record{Registration: &token}
	for n := range byte(maxLeaked + 2) {
		r.Secrets = append(r.Secrets, generated(n))
	}
	is.False(t, r.Withdraw([32]byte{100}, now))
	for n := range byte(maxLeaked) {
		is.True(t, r.Withdraw([32]byte{n}, now))
		is.False(t, r.Withdraw([32]byte{n}, now))
	}
	is.True(t, r.Forget(generated(maxLeaked).ID))
	is.Len(t, r.Leaked, maxLeaked)
	hash := [32]byte{1}
	is.Equal(t, hash[:], r.Leaked[0])
	is.True(t, r.Withdraw([32]byte{200}, now))
	is.Nil(t, r.Registration)
	is.Len(t, r.Leaked, maxLeaked)
	is.Len(t, r.Secrets, 1)
	r.Secrets[0].Expires = now.UnixMilli()
	is.False(t, r.Withdraw(r.Secrets[0].Hash, now), "it has ended by itself")
}
