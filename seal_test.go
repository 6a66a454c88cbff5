package apitoken_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func localSeal(t testing.TB, keys ...byte) apitoken.Sealer {
	t.Helper()
	var list [][]byte
	for _, k := range keys {
		list = append(list, bytes.Repeat([]byte{k, 7}, 16))
	}
	s, err := apitoken.NewSealer(list...)
	require.NoError(t, err)
	return s
}

// sealing is the configuration on the way from keys in clear to sealed ones, sealedOnly the one behind it.
func sealing(s apitoken.Sealer) func(*apitoken.Config) {
	return func(c *apitoken.Config) { c.Seal, c.InsecureKeysInStore = s, true }
}

func sealedOnly(s apitoken.Sealer) func(*apitoken.Config) {
	return func(c *apitoken.Config) { c.Seal, c.InsecureKeysInStore = s, false }
}

// started is a start that may fail. What started is closed at once.
func started(st store.Store, change ...func(*apitoken.Config)) error {
	c := config(st)
	for _, f := range change {
		f(&c)
	}
	svc, err := apitoken.New(c)
	if err != nil {
		return err
	}
	return svc.Close()
}

func requireWrong(t *testing.T, err error, field, says string) {
	t.Helper()
	var wrong *apitoken.ConfigError
	require.ErrorAs(t, err, &wrong)
	require.Equal(t, field, wrong.Field)
	require.ErrorContains(t, err, says)
}

func keyRecords(t testing.TB, st store.Store, prefix string) (list []store.Record) {
	t.Helper()
	v, err := st.Follow(context.Background(), store.Position{}, []store.Kind{store.KindKey}, 1000)
	require.NoError(t, err)
	for _, r := range v.Records {
		if strings.HasPrefix(r.ID, prefix) {
			list = append(list, r)
		}
	}
	return list
}

// inClear is how many root secrets of the store lie in clear.
func inClear(t testing.TB, st store.Store) (n int) {
	t.Helper()
	for _, r := range keyRecords(t, st, "root.") {
		if bytes.Contains(r.Data, []byte(`"plain"`)) {
			n++
		}
	}
	return n
}

// write is somebody with write access to the store.
func write(t testing.TB, st store.Store, r store.Record) {
	t.Helper()
	ctx := context.Background()
	var expect store.Version
	if old, err := st.Get(ctx, r.Kind, r.ID); err == nil {
		expect = old.Version
	}
	id := store.Version{0xEE}
	copy(id[1:], time.Now().Format("150405.000000000"))
	_, err := st.Apply(ctx, &store.Change{ID: id, Puts: []store.Put{{Record: store.Record{Kind: r.Kind, ID: r.ID, Data: r.Data}, Expect: expect}}})
	require.NoError(t, err)
}

func keyEvents(t testing.TB, svc *apitoken.Service) (reasons []string) {
	t.Helper()
	for _, e := range events(t, svc, apitoken.EventQuery{Type: event.KeyChanged}) {
		reasons = append(reasons, e.Reason)
	}
	return reasons
}

// The way from InsecureKeysInStore to Seal on a store that is in use: what was issued before stays good, and there is no
// way back.
func TestKeysInClearAreSealed(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dir := t.TempDir()
	st := openStore(t, filepath.Join(dir, "tokens.db"))
	seal, err := apitoken.KeyFile(filepath.Join(dir, "tokens.key"))
	require.NoError(t, err)

	svc, err := apitoken.New(config(st))
	require.NoError(t, err)
	require.NoError(t, svc.SigningKeys.RotateSecrets(ctx))
	_, err = svc.SigningKeys.Rewrap(ctx)
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest, "there is nothing to seal with")
	i := issue(t, svc, aliceSession)
	_, key, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob"})
	require.NoError(t, err)
	active := activeKey(t, svc).ID
	require.NoError(t, svc.Close())
	require.Equal(t, 2, inClear(t, st))

	requireWrong(t, started(st, sealedOnly(seal)), "Seal", "InsecureKeysInStore beside Seal")
	require.Equal(t, 2, inClear(t, st), "keys that somebody may have put there are not taken without being told so")

	for start := range 2 { // the second has nothing to do
		svc, err := apitoken.New(func() apitoken.Config { c := config(st); sealing(seal)(&c); return c }())
		require.NoError(t, err)
		require.Zero(t, inClear(t, st))
		require.Equal(t, active, activeKey(t, svc).ID)
		require.NoError(t, validate(svc, i.Access))
		require.NoError(t, validate(svc, key))
		i, err = refresh(svc, i.Refresh)
		require.NoError(t, err)
		sealed := events(t, svc, apitoken.EventQuery{Type: event.KeyChanged})
		require.Equal(t, "root secrets sealed", sealed[0].Reason, "start %d", start)
		require.Equal(t, 2, sealed[0].Count)
		require.Len(t, sealed, 3)
		require.ErrorIs(t, svc.SigningKeys.RotateSecrets(ctx), apitoken.ErrInvalidRequest, "others may still run without the Sealer")
		require.NoError(t, svc.Close())
	}

	requireWrong(t, started(st), "Seal", "no way back")
	svc = serviceOn(t, st, sealedOnly(seal))
	require.NoError(t, validate(svc, i.Access))
	require.NoError(t, validate(svc, key))
	_, err = refresh(svc, i.Refresh)
	require.NoError(t, err)
	n, err := svc.SigningKeys.Rewrap(ctx)
	require.NoError(t, err)
	require.Equal(t, 2, n)
}

// A deployment that rolls: a process without the Sealer goes on beside those that have it, and writes no secret in clear.
func TestSealingWhileOthersRun(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := memstore.New()
	c := &clock{}
	seal := localSeal(t, 1)
	now := func(cfg *apitoken.Config) { cfg.Now = c.Now }
	old := serviceOn(t, st, now)
	before := issue(t, old, aliceSession)
	one := serviceOn(t, st, func(cfg *apitoken.Config) { now(cfg); sealing(seal)(cfg) })
	two := serviceOn(t, st, func(cfg *apitoken.Config) { now(cfg); sealing(seal)(cfg) })
	all := []*apitoken.Service{old, one, two}
	check := func() {
		t.Helper()
		require.Zero(t, inClear(t, st))
		for _, from := range all {
			i := issue(t, from, aliceSession)
			for _, to := range all {
				require.NoError(t, to.Sync(ctx))
				require.NoError(t, validate(to, before.Access))
				require.NoError(t, validate(to, i.Access))
				var err error
				i, err = refresh(to, i.Refresh)
				require.NoError(t, err)
			}
		}
	}
	check()
	err := old.SigningKeys.RotateSecrets(ctx)
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
	_, err = old.SigningKeys.Rewrap(ctx)
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
	check()
	first := activeKey(t, old).ID
	require.NoError(t, old.SigningKeys.Rotate(ctx))
	c.Advance(16 * time.Minute)
	before = issue(t, old, aliceSession)
	require.NotEqual(t, first, activeKey(t, two).ID, "the signing keys go on rotating")
	check()
	require.NoError(t, old.SigningKeys.Compromise(ctx, activeKey(t, old).ID, "test"))
	before = issue(t, two, aliceSession)
	check()
}

// Of a root secret that is made in clear and a sealing at the same moment, one waits for the other.
func TestASecretInClearRacesTheSealing(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	seal := localSeal(t, 1)
	withRing := func(c *store.Change) bool {
		for _, p := range c.Puts {
			if p.ID == "ring" {
				return true
			}
		}
		return false
	}
	t.Run("the sealing is first", func(t *testing.T) {
		st := memstore.New()
		mine := &faulty{Store: st}
		old := serviceOn(t, mine, nil)
		var once atomic.Bool
		mine.onApply(func(_ context.Context, c *store.Change) (error, error) {
			if withRing(c) && once.CompareAndSwap(false, true) {
				return started(st, sealing(seal)), nil
			}
			return nil, nil
		})
		require.ErrorIs(t, old.SigningKeys.RotateSecrets(ctx), apitoken.ErrInvalidRequest)
		require.True(t, once.Load())
		require.Zero(t, inClear(t, st))
		require.NoError(t, started(st, sealedOnly(seal)))
	})
	t.Run("the secret is first", func(t *testing.T) {
		st := memstore.New()
		old := serviceOn(t, st, nil)
		mine := &faulty{Store: st}
		var once atomic.Bool
		mine.onApply(func(_ context.Context, c *store.Change) (error, error) {
			if withRing(c) && once.CompareAndSwap(false, true) {
				return old.SigningKeys.RotateSecrets(ctx), nil
			}
			return nil, nil
		})
		require.NoError(t, started(mine, sealing(seal)))
		require.True(t, once.Load())
		require.Len(t, keyRecords(t, st, "root."), 2)
		require.Zero(t, inClear(t, st))
		require.NoError(t, started(st, sealedOnly(seal)))
	})
	t.Run("a start without the Sealer is caught between", func(t *testing.T) {
		st := memstore.New()
		require.NoError(t, started(st))
		mine := &late{Store: st, before: func() error { return started(st, sealing(seal)) }}
		requireWrong(t, started(mine), "Seal", "no way back")
	})
}

// late is a store of which, after the first snapshot was read, something else happens.
type late struct {
	store.Store
	before func() error
	reads  atomic.Int32
}

func (l *late) Follow(ctx context.Context, after store.Position, kinds []store.Kind, max int) (store.View, error) {
	if after != (store.Position{}) && l.reads.Add(1) == 1 {
		if err := l.before(); err != nil {
			return store.View{}, err
		}
	}
	return l.Store.Follow(ctx, after, kinds, max)
}

// The process dies before or after any of the writes: the next start goes on, no secret is lost, and until all are sealed nobody
// takes the store for a sealed one.
func TestSealingStopsAnywhere(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	seal := localSeal(t, 1)
	const roots = 20 // three changes
	for stop := 1; stop <= 3; stop++ {
		for _, done := range []bool{false, true} {
			st := memstore.New()
			svc, err := apitoken.New(config(st))
			require.NoError(t, err)
			for range roots - 1 {
				require.NoError(t, svc.SigningKeys.RotateSecrets(ctx))
			}
			i := issue(t, svc, aliceSession)
			require.NoError(t, svc.Close())
			dying := &faulty{Store: st}
			writes := 0
			dying.onApply(func(context.Context, *store.Change) (error, error) {
				switch writes++; {
				case writes == stop && done:
					return nil, store.ErrReadOnly // it was done, and nobody heard of it
				case writes >= stop:
					return store.ErrReadOnly, nil
				}
				return nil, nil
			})
			require.Error(t, started(dying, sealing(seal)))
			left := roots - 8*(stop-1)
			if done {
				left = max(roots-8*stop, 0)
			}
			require.Equal(t, left, inClear(t, st), "stop %d, done %v", stop, done)
			if left > 0 {
				requireWrong(t, started(st, sealedOnly(seal)), "Seal", "lies in clear")
			}
			if left < roots {
				requireWrong(t, started(st), "Seal", "no way back")
			}
			svc = serviceOn(t, st, sealing(seal))
			require.Zero(t, inClear(t, st))
			require.NoError(t, validate(svc, i.Access))
			_, err = refresh(svc, i.Refresh)
			require.NoError(t, err)
			count := 0
			for _, e := range events(t, svc, apitoken.EventQuery{Type: event.KeyChanged}) {
				if e.Reason == "root secrets sealed" {
					count += e.Count
				}
			}
			require.Equal(t, roots, count, "each is told of once")
			require.NoError(t, started(st, sealedOnly(seal)))
		}
	}
}

// Once all is sealed, a secret in clear that somebody writes is not taken: by a process that runs, by one that starts, whatever
// is set beside Seal.
func TestASecretInClearIsNotTakenBack(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	seal := localSeal(t, 1)
	st, thiefs := memstore.New(), memstore.New()
	thief := serviceOn(t, thiefs, nil)
	stolen := issue(t, thief, aliceSession)
	require.NoError(t, started(st))
	running := []*apitoken.Service{serviceOn(t, st, sealing(seal)), serviceOn(t, st, sealedOnly(seal))}
	good := issue(t, running[0], aliceSession)

	write(t, st, keyRecords(t, thiefs, "root.")[0])
	for _, r := range keyRecords(t, thiefs, "sign.") {
		write(t, st, r)
	}
	for _, svc := range running {
		require.NoError(t, svc.Sync(ctx))
		apitoken.TendKeys(svc)
		require.ErrorIs(t, validate(svc, stolen.Access), apitoken.ErrInvalidToken)
		require.NoError(t, validate(svc, good.Access))
		require.NoError(t, validate(svc, issue(t, svc, aliceSession).Access))
	}
	requireWrong(t, started(st, sealing(seal)), "Seal", "someone put it there")
	requireWrong(t, started(st, sealedOnly(seal)), "Seal", "lies in clear")

	// The same with the store's own secret, as it lay there before, and with the mark that all was sealed taken away: what
	// decides is the configuration, which is not in the store.
	st = memstore.New()
	require.NoError(t, started(st))
	bare := keyRecords(t, st, "root.")[0]
	require.NoError(t, started(st, sealing(seal)))
	sealed, lock := keyRecords(t, st, "root.")[0], keyRecords(t, st, "ring")[0]
	write(t, st, bare)
	requireWrong(t, started(st, sealing(seal)), "Seal", "someone put it there")
	lock.Data = []byte(`{"v":1,"n":1}`)
	write(t, st, lock)
	requireWrong(t, started(st, sealedOnly(seal)), "Seal", "lies in clear")

	// What tells that it lay in clear cannot be edited away.
	write(t, st, sealed)
	require.NoError(t, started(st, sealedOnly(seal)))
	require.Contains(t, string(sealed.Data), `,"exposed":true`)
	sealed.Data = bytes.Replace(sealed.Data, []byte(`,"exposed":true`), nil, 1)
	write(t, st, sealed)
	requireWrong(t, started(st, sealedOnly(seal)), "Seal", "altered")
}

// oneWay is a KMS whose role may encrypt and not decrypt.
type oneWay struct{ apitoken.Sealer }

func (o oneWay) Open(context.Context, []byte, []byte) ([]byte, error) {
	return nil, errors.New("kms: no permission to decrypt")
}

// wrongWay gives back something else.
type wrongWay struct{ apitoken.Sealer }

func (w wrongWay) Open(context.Context, []byte, []byte) ([]byte, error) { return make([]byte, 32), nil }

func TestASealerThatDoesNotOpenSealsNothing(t *testing.T) {
	t.Parallel()
	st := memstore.New()
	require.NoError(t, started(st))
	requireWrong(t, started(st, sealing(oneWay{localSeal(t, 1)})), "Seal", "no permission to decrypt")
	requireWrong(t, started(st, sealing(wrongWay{localSeal(t, 1)})), "Seal", "does not open what it sealed")
	require.Equal(t, 1, inClear(t, st), "the only form in which the secret exists")
	require.NoError(t, started(st))
}

// What lay in clear is in older copies of the store. RotateSecrets ends what can be done with it: the ring moves under a secret
// that never lay in clear, without one false refusal, and a key that is made with the older one is not taken any more.
func TestRotateSecretsEndsWhatLayInClear(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	st := memstore.New()
	now := func(cfg *apitoken.Config) { cfg.Now = c.Now }
	with := func(s apitoken.Sealer) func(*apitoken.Config) {
		return func(cfg *apitoken.Config) { now(cfg); sealedOnly(s)(cfg) }
	}
	require.NoError(t, started(st, now))
	bare := keyRecords(t, st, "root.")[0]
	require.NoError(t, started(st, now, sealing(localSeal(t, 1))))
	older := keyRecords(t, st, "root.")[0]
	one, two := serviceOn(t, st, with(localSeal(t, 1))), serviceOn(t, st, with(localSeal(t, 1)))
	all := []*apitoken.Service{one, two}
	both := func(f func(*apitoken.Service)) {
		for _, svc := range all {
			require.NoError(t, svc.Sync(ctx))
			f(svc)
		}
	}
	forge := func() (taken bool) {
		t.Helper()
		rec, err := apitoken.ForgeKey(one, bare)
		require.NoError(t, err)
		write(t, st, rec)
		both(func(svc *apitoken.Service) {
			doc, err := svc.SigningKeys.JWKS(ctx, "")
			require.NoError(t, err)
			taken = strings.Contains(string(doc), strings.TrimPrefix(rec.ID, "sign."))
		})
		rec.Data = []byte("{}") // away with it
		write(t, st, rec)
		both(func(*apitoken.Service) {})
		return taken
	}
	require.True(t, forge(), "who has the secret can make a key: that is what has to end")

	_, key, err := one.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob"})
	require.NoError(t, err)
	session := issue(t, one, apitoken.Request{Subject: "alice", Refresh: true, Lifetime: time.Hour})
	for range 10 { // more than one change holds
		require.NoError(t, one.SigningKeys.Rotate(ctx))
		c.Advance(16 * time.Minute)
		session, err = refresh(one, session.Refresh)
		require.NoError(t, err)
	}
	bad := activeKey(t, one).ID
	require.NoError(t, one.SigningKeys.Compromise(ctx, bad, "test"))
	both(func(*apitoken.Service) {})
	long := issue(t, two, apitoken.Request{Subject: "alice", Lifetime: time.Hour})
	kept := session.Access
	first := activeKey(t, one).ID
	root := strings.TrimPrefix(bare.ID, "root.")

	require.NoError(t, one.SigningKeys.RotateSecrets(ctx))
	check := func() {
		t.Helper()
		both(func(svc *apitoken.Service) {
			require.NoError(t, validate(svc, long.Access))
			require.NoError(t, validate(svc, key))
			session, err = refresh(svc, session.Refresh)
			require.NoError(t, err)
			both(func(other *apitoken.Service) { require.NoError(t, validate(other, session.Access)) })
			require.Error(t, validate(svc, kept), "a compromised key stays one")
		})
	}
	both(apitoken.TendKeys)
	check()
	require.Equal(t, first, activeKey(t, one).ID, "not before every process can know the new secret")
	c.Advance(16 * time.Minute)
	both(apitoken.TendKeys)
	both(apitoken.TendKeys)
	check()
	require.Equal(t, first, activeKey(t, two).ID, "its successor was not known to every validator yet")
	require.Equal(t, []string{"next", "active"}, states(t, two)[:2])
	require.False(t, forge())
	for _, r := range keyRecords(t, st, "root.") {
		require.Equal(t, strings.HasSuffix(r.ID, root), bytes.Contains(r.Data, []byte(`"spent":true`)))
	}
	c.Advance(16 * time.Minute)
	check()
	require.NotEqual(t, first, activeKey(t, one).ID)
	require.Equal(t, 1, len(filter(keyEvents(t, one), "older root secrets prove no signing key any more")), "by one of the processes")
	require.Error(t, validate(serviceOn(t, st, with(localSeal(t, 1))), kept), "a compromised key stays one")

	// Sealing it again gives it nothing back, and neither does the older form of its record, put back under a process that runs.
	// One that starts would take that, which is authentic: not when the key-encryption key of then is gone.
	write(t, st, older)
	both(apitoken.TendKeys)
	require.False(t, forge())
	all = []*apitoken.Service{serviceOn(t, st, with(localSeal(t, 2, 1)))}
	n, err := all[0].SigningKeys.Rewrap(ctx)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	for _, svc := range []*apitoken.Service{one, two, all[0]} {
		require.NoError(t, svc.Close()) // a running one may spend the root again before the next starts
	}
	write(t, st, older)
	requireWrong(t, started(st, with(localSeal(t, 2))), "Seal", "which was not given")
	all = []*apitoken.Service{serviceOn(t, st, with(localSeal(t, 2, 1)))}
	_, err = all[0].SigningKeys.Rewrap(ctx)
	require.NoError(t, err)
	all = []*apitoken.Service{serviceOn(t, st, with(localSeal(t, 2)))}
	check()
}

func filter(list []string, s string) (out []string) {
	for _, x := range list {
		if x == s {
			out = append(out, x)
		}
	}
	return out
}

// A process that dies between the writes that move the ring leaves a ring that works, and the next goes on.
func TestSpendingStopsAnywhere(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for stop := 1; stop <= 5; stop++ {
		for _, done := range []bool{false, true} {
			c := &clock{}
			st := memstore.New()
			with := func(cfg *apitoken.Config) {
				cfg.Now, cfg.KeyRotation = c.Now, -1
				sealedOnly(localSeal(t, 1))(cfg)
			}
			dying := &faulty{Store: st}
			cfg := config(dying)
			with(&cfg)
			svc, err := apitoken.New(cfg)
			require.NoError(t, err)
			for range 9 {
				require.NoError(t, svc.SigningKeys.Rotate(ctx))
				c.Advance(16 * time.Minute)
			}
			require.NoError(t, svc.SigningKeys.RotateSecrets(ctx))
			session := issue(t, svc, apitoken.Request{Subject: "alice", Refresh: true, Lifetime: time.Hour})
			var writes atomic.Int32
			dying.onApply(func(context.Context, *store.Change) (error, error) {
				switch n := int(writes.Add(1)); {
				case n == stop && done:
					return nil, store.ErrReadOnly
				case n >= stop:
					return store.ErrReadOnly, nil
				}
				return nil, nil
			})
			c.Advance(16 * time.Minute)
			require.NoError(t, svc.Sync(ctx))
			apitoken.TendKeys(svc)
			require.NoError(t, svc.Sync(ctx))
			require.NoError(t, validate(svc, session.Access))
			require.NoError(t, svc.Close())

			again := serviceOn(t, st, with)
			apitoken.TendKeys(again)
			apitoken.TendKeys(again)
			require.NoError(t, validate(again, session.Access))
			session, err = refresh(again, session.Refresh)
			require.NoError(t, err)
			require.NoError(t, validate(again, session.Access))
			require.Equal(t, "next", states(t, again)[0])
			spent := 0
			for _, r := range keyRecords(t, st, "root.") {
				if bytes.Contains(r.Data, []byte(`"spent":true`)) {
					spent++
				}
			}
			require.Equal(t, 1, spent, "stop %d, done %v", stop, done)
			c.Advance(16 * time.Minute)
			require.NoError(t, again.Sync(ctx))
			require.NoError(t, validate(again, issue(t, again, aliceSession).Access))
		}
	}
}

// Of processes that start together on a store with keys in clear, one seals them, and all go on with the same.
func TestStartsTogetherSealOnce(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := memstore.New()
	first := serviceOn(t, st, nil)
	for range 9 {
		require.NoError(t, first.SigningKeys.RotateSecrets(ctx))
	}
	before := issue(t, first, aliceSession)
	var list [4]*apitoken.Service
	var wg sync.WaitGroup
	for n := range list {
		wg.Go(func() {
			cfg := config(st)
			sealing(localSeal(t, 1))(&cfg)
			list[n], _ = apitoken.New(cfg)
		})
	}
	wg.Wait()
	for _, svc := range list {
		require.NotNil(t, svc)
		t.Cleanup(func() { require.NoError(t, svc.Close()) })
		require.NoError(t, validate(svc, before.Access))
		require.NoError(t, validate(first, issue(t, svc, aliceSession).Access))
	}
	require.Zero(t, inClear(t, st))
	count := 0
	for _, e := range events(t, first, apitoken.EventQuery{Type: event.KeyChanged}) {
		if e.Reason == "root secrets sealed" {
			count += e.Count
		}
	}
	require.Equal(t, 10, count)
}
