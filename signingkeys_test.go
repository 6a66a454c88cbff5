package apitoken_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func states(t *testing.T, svc *apitoken.Service) (list []string) {
	t.Helper()
	keys, err := svc.SigningKeys.List(context.Background())
	require.NoError(t, err)
	for _, k := range keys {
		list = append(list, k.State)
	}
	return list
}

func activeKey(t *testing.T, svc *apitoken.Service) apitoken.SigningKey {
	t.Helper()
	keys, err := svc.SigningKeys.List(context.Background())
	require.NoError(t, err)
	for _, k := range keys {
		if k.State == "active" {
			return k
		}
	}
	t.Fatal("no active key")
	return apitoken.SigningKey{}
}

func TestAlgorithms(t *testing.T) {
	t.Parallel()
	for _, alg := range []string{"ES256", "EdDSA", "RS256", "PS256", "HS256"} {
		svc := service(t, func(c *apitoken.Config) { c.Algorithm = alg })
		i := issue(t, svc, aliceSession)
		require.NoError(t, validate(svc, i.Access), alg)
		require.NoError(t, validate(svc, i.Access), "%s, second sight", alg)
		doc, err := svc.SigningKeys.JWKS(context.Background(), "")
		require.NoError(t, err)
		var set struct {
			Keys []map[string]string `json:"keys"`
		}
		require.NoError(t, json.Unmarshal(doc, &set))
		if alg == "HS256" {
			require.Empty(t, set.Keys, "a shared secret is never published")
			continue
		}
		require.Len(t, set.Keys, 1)
		require.Equal(t, alg, set.Keys[0]["alg"])
		require.Equal(t, "sig", set.Keys[0]["use"])
		require.Equal(t, activeKey(t, svc).ID, set.Keys[0]["kid"])
		for _, private := range []string{"d", "p", "q", "k", "dp", "dq", "qi"} {
			require.NotContains(t, set.Keys[0], private)
		}
	}
}

func TestKeyLife(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	svc := service(t, func(cfg *apitoken.Config) { cfg.Now, cfg.KeyRotation = c.Now, -1 })
	first := activeKey(t, svc)
	old := issue(t, svc, apitoken.Request{Subject: "alice", Lifetime: time.Hour})
	require.NoError(t, svc.SigningKeys.Rotate(ctx))
	require.Equal(t, []string{"next", "active"}, states(t, svc), "published, and not used before every validator can know it")
	require.NoError(t, svc.SigningKeys.Rotate(ctx))
	require.Equal(t, []string{"next", "active"}, states(t, svc), "a second call brings nothing forward that is on its way")
	require.Equal(t, first.ID, activeKey(t, svc).ID)
	c.Advance(15*time.Minute + time.Second)
	require.NotEqual(t, first.ID, activeKey(t, svc).ID)
	require.Equal(t, []string{"active", "retired"}, states(t, svc))
	require.NoError(t, validate(svc, old.Access), "accepted until its own expiry")
	require.NoError(t, validate(svc, issue(t, svc, aliceSession).Access))
	c.Advance(3 * time.Hour)
	require.Equal(t, []string{"active"}, states(t, svc), "gone when the last token that it signed has died")
}

func TestRotationByItself(t *testing.T) {
	t.Parallel()
	st := tempStore(t)
	rotate := func(c *apitoken.Config) { c.KeyRotation = time.Second }
	one, two := serviceOn(t, st, rotate), serviceOn(t, st, rotate)
	seen := map[string]bool{}
	deadline := time.Now().Add(20 * time.Second)
	for len(seen) < 4 && time.Now().Before(deadline) {
		for _, svc := range []*apitoken.Service{one, two} {
			i := issue(t, svc, apitoken.Request{Subject: "alice"})
			header, _, _ := strings.Cut(i.Access.Reveal(), ".")
			seen[header] = true
			require.NoError(t, validate(one, i.Access))
			require.NoError(t, validate(two, i.Access))
		}
	}
	require.GreaterOrEqual(t, len(seen), 4)
	active := 0
	for _, s := range states(t, one) {
		if s == "active" {
			active++
		}
	}
	require.Equal(t, 1, active, "one of the processes rotates, the other follows")
}

func TestAlgorithmChangesWithALead(t *testing.T) {
	t.Parallel()
	c := &clock{}
	st := tempStore(t)
	svc, err := apitoken.New(config(st))
	require.NoError(t, err)
	old := issue(t, svc, aliceSession)
	require.NoError(t, svc.Close())
	svc = serviceOn(t, st, func(cfg *apitoken.Config) { cfg.Now, cfg.Algorithm = c.Now, "EdDSA" })
	require.Equal(t, "ES256", activeKey(t, svc).Algorithm)
	c.Advance(16 * time.Minute)
	require.Equal(t, "EdDSA", activeKey(t, svc).Algorithm)
	i := issue(t, svc, aliceSession)
	require.NoError(t, validate(svc, i.Access))
	_, err = refresh(svc, old.Refresh)
	require.NoError(t, err)
}

func TestCompromise(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := tempStore(t)
	svc, other := serviceOn(t, st, nil), serviceOn(t, st, nil)
	i := issue(t, svc, aliceSession)
	bad := activeKey(t, svc)
	require.NoError(t, validate(other, i.Access))
	require.NoError(t, svc.SigningKeys.Compromise(ctx, bad.ID, "stolen laptop"))
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrInvalidToken)
	require.NoError(t, other.Sync(ctx))
	require.ErrorIs(t, validate(other, i.Access), apitoken.ErrInvalidToken)
	n, err := refresh(svc, i.Refresh)
	require.NoError(t, err, "the grant is not the key's")
	require.NoError(t, validate(other, n.Access))
	require.NotEqual(t, bad.ID, activeKey(t, svc).ID)
	doc, err := svc.SigningKeys.JWKS(ctx, "")
	require.NoError(t, err)
	require.NotContains(t, string(doc), bad.ID)
	require.NoError(t, svc.SigningKeys.Compromise(ctx, bad.ID, "again"), "repeating is safe")
	require.ErrorIs(t, svc.SigningKeys.Compromise(ctx, "nosuch", "x"), apitoken.ErrNotFound)
	// With a next key on its way, that one takes over; a next one that is compromised is just gone.
	require.NoError(t, svc.SigningKeys.Rotate(ctx))
	keys, err := svc.SigningKeys.List(ctx)
	require.NoError(t, err)
	require.Equal(t, "next", keys[0].State)
	require.NoError(t, svc.SigningKeys.Compromise(ctx, keys[1].ID, "x"))
	require.Equal(t, keys[0].ID, activeKey(t, svc).ID)
	require.NoError(t, svc.SigningKeys.Rotate(ctx))
	require.NoError(t, svc.SigningKeys.Compromise(ctx, func() string { l, _ := svc.SigningKeys.List(ctx); return l[0].ID }(), "x"))
	require.Equal(t, keys[0].ID, activeKey(t, svc).ID)
	require.NoError(t, validate(other, issue(t, svc, aliceSession).Access))
	var reasons []string
	for _, e := range events(t, svc, apitoken.EventQuery{Type: event.KeyChanged}) {
		reasons = append(reasons, e.Reason)
	}
	require.Contains(t, reasons, "compromised")
}

func TestCompromiseSurvivesARestart(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := tempStore(t)
	svc, err := apitoken.New(config(st))
	require.NoError(t, err)
	i := issue(t, svc, aliceSession)
	require.NoError(t, svc.SigningKeys.Compromise(ctx, activeKey(t, svc).ID, "x"))
	require.NoError(t, svc.Close())
	svc = serviceOn(t, st, nil)
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrInvalidToken)
	require.NoError(t, validate(svc, issue(t, svc, aliceSession).Access))
}

// opaqueSigner hides its key's type, as those of a KMS do.
type opaqueSigner struct {
	crypto.Signer
	slow atomic.Pointer[chan struct{}]
	lies atomic.Bool
}

func (o *opaqueSigner) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if c := o.slow.Load(); c != nil {
		<-*c
	}
	if o.lies.Load() {
		digest = bytes.Repeat([]byte{1}, len(digest))
	}
	return o.Signer.Sign(r, digest, opts)
}

func TestSignersOutside(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	for alg, key := range map[string]crypto.Signer{"RS256": rsaKey, "PS256": rsaKey, "ES256": ecKey, "EdDSA": edKey} {
		st := tempStore(t)
		svc := serviceOn(t, st, nil)
		signer := &opaqueSigner{Signer: key}
		k, err := svc.SigningKeys.Import(ctx, signer, alg)
		require.NoError(t, err, alg)
		require.Equal(t, "active", k.State, "a ring that nobody knows yet needs no lead")
		require.True(t, k.Outside)
		i := issue(t, svc, aliceSession)
		require.NoError(t, validate(svc, i.Access), alg)
		// Another process has the public half only, until it imports the signer as well.
		other := serviceOn(t, st, nil)
		require.NoError(t, validate(other, i.Access))
		_, err = other.Issue(ctx, aliceSession)
		require.ErrorIs(t, err, apitoken.ErrUnavailable)
		_, err = other.SigningKeys.Import(ctx, signer, alg)
		require.NoError(t, err)
		require.NoError(t, validate(svc, issue(t, other, aliceSession).Access))

		// One that does not answer stalls nobody else, and ends with its caller's deadline.
		release := make(chan struct{})
		signer.slow.Store(&release)
		short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		_, err = svc.Issue(short, aliceSession)
		cancel()
		require.ErrorIs(t, err, apitoken.ErrUnavailable)
		require.NoError(t, validate(svc, i.Access))
		signer.slow.Store(nil)
		close(release)
		session := issue(t, svc, aliceSession)
		before := len(events(t, svc, apitoken.EventQuery{}))
		signer.lies.Store(true)
		_, err = svc.Issue(ctx, aliceSession)
		require.ErrorIs(t, err, apitoken.ErrUnavailable, "what it answers is verified")
		_, err = refresh(svc, session.Refresh)
		require.ErrorIs(t, err, apitoken.ErrUnavailable)
		require.Len(t, events(t, svc, apitoken.EventQuery{}), before, "what was not signed is not written down as issued")
		signer.lies.Store(false)
		_, err = refresh(svc, session.Refresh)
		require.NoError(t, err, "nor is a refresh token spent for it")
	}
}

func TestWeakSignersAreRefused(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Skip("this Go makes no weak keys")
	}
	_, err = svc.SigningKeys.Import(context.Background(), weak, "RS256")
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	_, err = svc.SigningKeys.Import(context.Background(), key, "ES256")
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest, "ES256 is P-256's")
	_, err = svc.SigningKeys.Import(context.Background(), nil, "ES256")
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
}

func TestImportIntoARingThatIsKnown(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	svc := service(t, func(cfg *apitoken.Config) { cfg.Now = c.Now })
	own := activeKey(t, svc)
	c.Advance(time.Hour)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	k, err := svc.SigningKeys.Import(ctx, key, "EdDSA")
	require.NoError(t, err)
	require.Equal(t, "next", k.State)
	require.Equal(t, own.ID, activeKey(t, svc).ID)
	c.Advance(16 * time.Minute)
	require.Equal(t, k.ID, activeKey(t, svc).ID)
	require.NoError(t, validate(svc, issue(t, svc, aliceSession).Access))
}

func TestKeysAtRest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	keyPath := filepath.Join(dir, "tokens.key")
	st := openStore(t, filepath.Join(dir, "tokens.db"))
	sealed := func(s apitoken.Sealer) func(*apitoken.Config) {
		return func(c *apitoken.Config) { c.Seal, c.InsecureKeysInStore = s, false }
	}
	start := func(s apitoken.Sealer) (*apitoken.Service, error) {
		c := config(st)
		sealed(s)(&c)
		return apitoken.New(c)
	}
	seal, err := apitoken.KeyFile(keyPath)
	require.NoError(t, err)
	_, err = os.Stat(keyPath)
	require.ErrorIs(t, err, os.ErrNotExist, "the file is made when something is sealed")
	svc, err := start(seal)
	require.NoError(t, err)
	i := issue(t, svc, aliceSession)
	require.NoError(t, svc.Close())
	info, err := os.Stat(keyPath)
	require.NoError(t, err)
	if runtime.GOOS != "windows" {
		require.EqualValues(t, 0o600, info.Mode().Perm())
	}

	seal, err = apitoken.KeyFile(keyPath)
	require.NoError(t, err)
	svc, err = start(seal)
	require.NoError(t, err)
	require.NoError(t, validate(svc, i.Access))
	_, err = refresh(svc, i.Refresh)
	require.NoError(t, err)
	require.NoError(t, svc.Close())

	// The file is gone: an error that says so, and no new key in its place.
	require.NoError(t, os.Rename(keyPath, keyPath+".away"))
	seal, err = apitoken.KeyFile(keyPath)
	require.NoError(t, err)
	_, err = start(seal)
	var wrong *apitoken.ConfigError
	require.ErrorAs(t, err, &wrong)
	require.Equal(t, "Seal", wrong.Field)
	require.Contains(t, err.Error(), "the file is gone")
	_, err = os.Stat(keyPath)
	require.ErrorIs(t, err, os.ErrNotExist)

	// Another key, none, and a damaged or readable file.
	another, err := apitoken.NewSealer(bytes.Repeat([]byte{1, 2}, 16))
	require.NoError(t, err)
	_, err = start(another)
	require.ErrorAs(t, err, &wrong)
	require.Contains(t, err.Error(), "which was not given")
	_, err = apitoken.New(config(st))
	require.ErrorAs(t, err, &wrong)
	require.Contains(t, err.Error(), "sealed")
	require.NoError(t, os.WriteFile(keyPath, []byte("hello"), 0o600))
	_, err = apitoken.KeyFile(keyPath)
	require.Error(t, err)
	require.NoError(t, os.Remove(keyPath))
	require.NoError(t, os.Rename(keyPath+".away", keyPath))
	if runtime.GOOS != "windows" {
		require.NoError(t, os.Chmod(keyPath, 0o644))
		_, err = apitoken.KeyFile(keyPath)
		require.Error(t, err, "others may read it")
	}
	for _, bad := range [][][]byte{nil, {make([]byte, 31)}, {make([]byte, 32)}, {bytes.Repeat([]byte{1, 2}, 16), bytes.Repeat([]byte{1, 2}, 16)}} {
		_, err := apitoken.NewSealer(bad...)
		require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
	}
}

func TestKeyEncryptionKeysRotate(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := tempStore(t)
	k1, k2 := bytes.Repeat([]byte{1, 9}, 16), bytes.Repeat([]byte{2, 9}, 16)
	start := func(keys ...[]byte) (*apitoken.Service, error) {
		seal, err := apitoken.NewSealer(keys...)
		require.NoError(t, err)
		c := config(st)
		c.Seal, c.InsecureKeysInStore = seal, false
		return apitoken.New(c)
	}
	svc, err := start(k1)
	require.NoError(t, err)
	i := issue(t, svc, aliceSession)
	require.NoError(t, svc.SigningKeys.RotateSecrets(ctx))
	require.NoError(t, svc.Close())
	_, err = start(k2)
	require.Error(t, err, "removal is refused while it is in use")
	svc, err = start(k2, k1)
	require.NoError(t, err)
	n, err := svc.SigningKeys.Rewrap(ctx)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	require.NoError(t, svc.Close())
	svc, err = start(k2)
	require.NoError(t, err)
	require.NoError(t, validate(svc, i.Access))
	_, err = refresh(svc, i.Refresh)
	require.NoError(t, err)
	require.NoError(t, svc.Close())
	_, err = start(k1)
	require.Error(t, err)
}

func TestRootSecretsRotate(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	st := tempStore(t)
	with := func(cfg *apitoken.Config) { cfg.Now = c.Now }
	svc, other := serviceOn(t, st, with), serviceOn(t, st, with)
	i := issue(t, svc, aliceSession)
	_, key, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob"})
	require.NoError(t, err)
	require.NoError(t, svc.SigningKeys.RotateSecrets(ctx))
	c.Advance(16 * time.Minute)
	require.NoError(t, other.Sync(ctx))
	require.NoError(t, validate(other, key))
	n, err := refresh(other, i.Refresh)
	require.NoError(t, err)
	n, err = refresh(svc, n.Refresh)
	require.NoError(t, err)
	_, err = refresh(other, n.Refresh)
	require.NoError(t, err)
}

func TestAKeyThatSomeoneWroteIsNotTaken(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := tempStore(t)
	svc := serviceOn(t, st, nil)
	mine := activeKey(t, svc)
	rec, err := st.Get(ctx, store.KindKey, "sign."+mine.ID)
	require.NoError(t, err)
	// The thief's own key under the record of another store's service, and ours with an edit.
	thief := tempStore(t)
	evil := serviceOn(t, thief, nil)
	stolen := issue(t, evil, aliceSession)
	evilKey, err := thief.Get(ctx, store.KindKey, "sign."+activeKey(t, evil).ID)
	require.NoError(t, err)
	_, err = st.Apply(ctx, &store.Change{ID: store.Version{1}, Puts: []store.Put{{Record: evilKey}}})
	require.NoError(t, err)
	edited := rec
	edited.Data = bytes.Replace(rec.Data, []byte(`"activates":`), []byte(`"activates":1`), 1)
	edited.ID = rec.ID + "x"
	_, err = st.Apply(ctx, &store.Change{ID: store.Version{2}, Puts: []store.Put{{Record: edited}}})
	require.NoError(t, err)
	require.NoError(t, svc.Sync(ctx))
	require.ErrorIs(t, validate(svc, stolen.Access), apitoken.ErrInvalidToken)
	require.Equal(t, []string{"active"}, states(t, svc))
	again := serviceOn(t, st, nil)
	require.ErrorIs(t, validate(again, stolen.Access), apitoken.ErrInvalidToken)
	require.NoError(t, validate(again, issue(t, svc, aliceSession).Access))
}

// brokenSealer is a KMS that is down.
type brokenSealer struct{ down atomic.Bool }

func (b *brokenSealer) Seal(_ context.Context, plain, _ []byte) ([]byte, error) {
	if b.down.Load() {
		return nil, errors.New("kms: down")
	}
	return append([]byte("sealed:"), plain...), nil
}

func (b *brokenSealer) Open(_ context.Context, sealed, _ []byte) ([]byte, error) {
	if b.down.Load() {
		return nil, errors.New("kms: down")
	}
	return bytes.TrimPrefix(sealed, []byte("sealed:")), nil
}

func TestAKMSIsNeededAtStartOnly(t *testing.T) {
	t.Parallel()
	st := tempStore(t)
	kms := &brokenSealer{}
	with := func(c *apitoken.Config) { c.Seal, c.InsecureKeysInStore = kms, false }
	svc := serviceOn(t, st, with)
	kms.down.Store(true)
	i := issue(t, svc, aliceSession)
	require.NoError(t, validate(svc, i.Access))
	require.NoError(t, svc.SigningKeys.Compromise(context.Background(), activeKey(t, svc).ID, "x"), "taking power away needs no KMS")
	require.NoError(t, validate(svc, issue(t, svc, aliceSession).Access))
	c := config(st)
	with(&c)
	_, err := apitoken.New(c)
	require.ErrorContains(t, err, "kms: down")
}

// Processes that start together on an empty store make one root secret and one key: the others take what the first made.
func TestStartsTogetherMakeOneKey(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := memstore.New()
	var list [4]*apitoken.Service
	var wg, ready sync.WaitGroup
	ready.Add(len(list))
	for n := range list {
		wg.Go(func() {
			var once sync.Once
			mine := &faulty{Store: st}
			mine.onApply(func(_ context.Context, c *store.Change) (error, error) {
				for _, p := range c.Puts {
					if p.ID == "ring" { // all have seen an empty ring before the first writes to it
						once.Do(func() { ready.Done(); ready.Wait() })
					}
				}
				return nil, nil
			})
			list[n], _ = apitoken.New(config(mine))
		})
	}
	wg.Wait()
	for _, svc := range list {
		require.NotNil(t, svc)
		t.Cleanup(func() { require.NoError(t, svc.Close()) })
	}
	var made []string
	v, err := st.Follow(ctx, store.Position{}, []store.Kind{store.KindKey}, 100)
	require.NoError(t, err)
	for _, r := range v.Records {
		made = append(made, r.ID[:4])
	}
	require.ElementsMatch(t, []string{"ring", "root", "sign"}, made)
	token := issue(t, list[0], apitoken.Request{Subject: "alice"})
	for _, svc := range list {
		require.NoError(t, validate(svc, token.Access), "no token is signed with a key that validators can't know yet")
	}
}

// deaf is a store that gives no hints: followers hear of nothing until they ask.
type deaf struct{ *memstore.Store }

func (d *deaf) Wait(ctx context.Context, _ store.Position) error {
	<-ctx.Done()
	return ctx.Err()
}

// A key that takes over from a compromised one signs before others heard of it. They look before they call it unknown.
func TestAKeyThatSignsAtOnceIsKnownElsewhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // where a look at the store ends in time
		ctx := context.Background()
		st := &deaf{Store: memstore.New()}
		slow := func(c *apitoken.Config) { c.Validation.MaxStaleness = time.Hour } // polls every five seconds, at most
		one, two := serviceOn(t, st, slow), serviceOn(t, st, slow)
		for range 3 {
			require.NoError(t, one.SigningKeys.Compromise(ctx, activeKey(t, one).ID, "drill"))
			token := issue(t, one, apitoken.Request{Subject: "alice"})
			require.NoError(t, validate(two, token.Access), "a good token is never called invalid")
		}
		_, key, err := ed25519.GenerateKey(rand.Reader)
		require.NoError(t, err)
		_, err = one.SigningKeys.Import(ctx, key, "EdDSA") // at once: the ring is young
		require.NoError(t, err)
		require.NoError(t, validate(two, issue(t, one, apitoken.Request{Subject: "alice"}).Access))
	})
}

// Where the store cannot be asked, a key that may be new is no reason to say that a token is bad; a kid that its issuer cannot
// have known is.
func TestAnUnknownKeyWhileTheStoreIsDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // where a look at the store ends in time
		ctx := context.Background()
		mem := &deaf{Store: memstore.New()}
		bad := &faulty{Store: mem}
		slow := func(c *apitoken.Config) { c.Validation.MaxStaleness = time.Hour }
		one, two := serviceOn(t, mem, slow), serviceOn(t, bad, slow)
		known := issue(t, one, apitoken.Request{Subject: "alice"})
		require.NoError(t, validate(two, known.Access))
		bad.failReads(errEngine)
		require.NoError(t, one.SigningKeys.Compromise(ctx, activeKey(t, one).ID, "drill"))
		token := issue(t, one, apitoken.Request{Subject: "alice"})
		require.ErrorIs(t, validate(two, token.Access), apitoken.ErrUnavailable)
		header, rest, _ := strings.Cut(known.Access.Reveal(), ".")
		raw, err := base64.RawURLEncoding.DecodeString(header)
		require.NoError(t, err)
		raw = bytes.Replace(raw, []byte(activeKey(t, one).ID), []byte("nobody"), 1)
		var head map[string]string
		require.NoError(t, json.Unmarshal(raw, &head))
		head["kid"] = "nobody"
		raw, err = json.Marshal(head)
		require.NoError(t, err)
		for range 10_000 {
			_, err = two.Validate(ctx, apitoken.Bearer(base64.RawURLEncoding.EncodeToString(raw)+"."+rest))
			require.ErrorIs(t, err, apitoken.ErrInvalidToken)
		}
		bad.failReads(nil)
		require.NoError(t, validate(two, token.Access))
	})
}

// A rule on a signing key, however it was made, moves the ring on: it would else go on signing what is refused.
func TestRevokingASigningKeyReplacesIt(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	i := issue(t, svc, aliceSession)
	bad := activeKey(t, svc)
	require.NoError(t, svc.Revoke(ctx, apitoken.BySigningKey(bad.ID), "stolen"))
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrInvalidToken)
	require.NotEqual(t, bad.ID, activeKey(t, svc).ID)
	require.NoError(t, validate(svc, issue(t, svc, aliceSession).Access))
	require.NoError(t, svc.Revoke(ctx, apitoken.BySigningKey("of another ring"), "in case"))
}

// The key that takes over does so by every clock: a process whose own is behind must not fall back on a key that is gone.
func TestTakingOverDoesNotWaitForSlowClocks(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	ahead, behind := &clock{}, &clock{}
	st := tempStore(t)
	one := serviceOn(t, st, func(c *apitoken.Config) { c.Now, c.KeyRotation = ahead.Now, -1 })
	two := serviceOn(t, st, func(c *apitoken.Config) { c.Now, c.KeyRotation = behind.Now, -1 })
	old := activeKey(t, one)
	require.NoError(t, one.SigningKeys.Rotate(ctx))
	ahead.Advance(30 * 24 * time.Hour)
	behind.Advance(30*24*time.Hour - 5*time.Second)
	second := activeKey(t, one)
	require.NotEqual(t, old.ID, second.ID)
	for _, withNext := range []bool{false, true} {
		if withNext {
			require.NoError(t, one.SigningKeys.Rotate(ctx))
		}
		bad := activeKey(t, one).ID
		require.NoError(t, one.SigningKeys.Compromise(ctx, bad, "stolen"))
		require.NoError(t, two.Sync(ctx))
		require.Equal(t, activeKey(t, one).ID, activeKey(t, two).ID)
		require.NotEqual(t, old.ID, activeKey(t, two).ID)
		require.NoError(t, validate(one, issue(t, two, apitoken.Request{Subject: "alice"}).Access))
	}
}

// Taking power away waits for nothing: the key is refused here at once, and the ring moves on when the store comes back.
func TestCompromiseWhileTheStoreIsDown(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	bad := &faulty{Store: memstore.New()}
	svc := serviceOn(t, bad, nil)
	i := issue(t, svc, aliceSession)
	key := activeKey(t, svc)
	bad.failReads(errEngine)
	bad.onApply(func(context.Context, *store.Change) (error, error) { return errEngine, nil })
	require.ErrorIs(t, svc.SigningKeys.Compromise(ctx, key.ID, "stolen"), apitoken.ErrUnavailable)
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked, "in force here")
	// Another process changes the ring meanwhile, so that what was tried first cannot be written any more.
	other := serviceOn(t, bad.Store, nil)
	require.NoError(t, other.SigningKeys.Rotate(ctx))
	bad.onApply(nil)
	bad.failReads(nil)
	require.Eventually(t, func() bool {
		return other.Sync(ctx) == nil && errors.Is(validate(other, i.Access), apitoken.ErrInvalidToken)
	}, time.Minute, 10*time.Millisecond, "it goes on trying")
	require.Eventually(t, func() bool {
		k := activeKey(t, svc)
		return k.ID != key.ID
	}, time.Minute, 10*time.Millisecond)
	require.NoError(t, validate(other, issue(t, svc, aliceSession).Access))
	require.ErrorIs(t, svc.SigningKeys.Compromise(ctx, "nosuch", "x"), apitoken.ErrNotFound)
}

// A signer that never answers holds a bounded number of places, whatever its callers' patience.
func TestAHungSignerIsBounded(t *testing.T) {
	ctx := context.Background()
	svc := service(t, nil)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	signer := &opaqueSigner{Signer: key}
	_, err = svc.SigningKeys.Import(ctx, signer, "EdDSA")
	require.NoError(t, err)
	release := make(chan struct{})
	signer.slow.Store(&release)
	before := runtime.NumGoroutine()
	for range 3000 {
		short, cancel := context.WithTimeout(ctx, time.Microsecond)
		_, err = svc.Issue(short, apitoken.Request{Subject: "alice"})
		cancel()
		require.ErrorIs(t, err, apitoken.ErrUnavailable)
	}
	require.Less(t, runtime.NumGoroutine()-before, 600)
	// Another signer is not held up by it.
	_, second, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	_, err = svc.SigningKeys.Import(ctx, second, "EdDSA")
	require.NoError(t, err)
	require.NoError(t, validate(svc, issue(t, svc, aliceSession).Access))
	close(release)
}

func TestRewrapTakesEveryRoot(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := memstore.New()
	k1, k2 := bytes.Repeat([]byte{1, 9}, 16), bytes.Repeat([]byte{2, 9}, 16)
	start := func(keys ...[]byte) (*apitoken.Service, error) {
		seal, err := apitoken.NewSealer(keys...)
		require.NoError(t, err)
		c := config(st)
		c.Seal, c.InsecureKeysInStore = seal, false
		return apitoken.New(c)
	}
	svc, err := start(k1)
	require.NoError(t, err)
	for range 29 {
		require.NoError(t, svc.SigningKeys.RotateSecrets(ctx))
	}
	require.NoError(t, svc.Close())
	svc, err = start(k2, k1)
	require.NoError(t, err)
	n, err := svc.SigningKeys.Rewrap(ctx)
	require.NoError(t, err)
	require.Equal(t, 30, n)
	require.NoError(t, svc.Close())
	svc, err = start(k2)
	require.NoError(t, err, "nothing is left under the old key-encryption key")
	require.NoError(t, svc.Close())
}

// Close waits for reads of API keys that its callers no longer wait for: the store may be closed behind it.
func TestCloseWaitsForReads(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		st := &slowReads{Store: memstore.New(), release: make(chan struct{})}
		one := serviceOn(t, st.Store, nil)
		_, secret, err := one.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob"})
		require.NoError(t, err)
		svc, err := apitoken.New(config(st))
		require.NoError(t, err)
		gone, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err = svc.Validate(gone, apitoken.Bearer(secret.Reveal()))
		require.ErrorIs(t, err, apitoken.ErrUnavailable)
		var closed atomic.Bool
		go func() { _ = svc.Close(); closed.Store(true) }()
		synctest.Wait()
		require.False(t, closed.Load(), "closed while it still reads")
		close(st.release)
		synctest.Wait()
		require.True(t, closed.Load())
		_, err = svc.Validate(ctx, apitoken.Bearer(secret.Reveal()+"x"))
		require.Error(t, err)
	})
}

// slowReads is a store whose reads of API keys take until a test says so, whatever their context says.
type slowReads struct {
	store.Store
	release chan struct{}
}

func (s *slowReads) Get(ctx context.Context, k store.Kind, id string) (store.Record, error) {
	if k == store.KindAPIKey {
		<-s.release
	}
	return s.Store.Get(ctx, k, id)
}

// A store that comes back from before a key was withdrawn does not bring the key back to sign: whoever knows the rule withdraws it
// again.
func TestAWithdrawnKeyStaysWithdrawn(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := memstore.New()
	one, two := serviceOn(t, st, nil), serviceOn(t, st, nil)
	bad := activeKey(t, one)
	good, err := st.Get(ctx, store.KindKey, "sign."+bad.ID)
	require.NoError(t, err)
	require.NoError(t, one.SigningKeys.Compromise(ctx, bad.ID, "stolen"))
	next := activeKey(t, one).ID
	// Somebody who can write puts the older record back, authentic as it was.
	now, err := st.Get(ctx, store.KindKey, "sign."+bad.ID)
	require.NoError(t, err)
	put := store.Record{Kind: store.KindKey, ID: good.ID, Data: good.Data}
	_, err = st.Apply(ctx, &store.Change{ID: store.Version{9}, Puts: []store.Put{{Record: put, Expect: now.Version}}})
	require.NoError(t, err)
	for _, svc := range []*apitoken.Service{one, two} {
		require.NoError(t, svc.Sync(ctx))
		require.Equal(t, next, activeKey(t, svc).ID)
		doc, err := svc.SigningKeys.JWKS(ctx, "")
		require.NoError(t, err)
		require.NotContains(t, string(doc), bad.ID)
	}
	// A process that starts on that store knows the key by its record and the rule by the store: the rule wins.
	three := serviceOn(t, st, nil)
	require.Eventually(t, func() bool {
		doc, err := three.SigningKeys.JWKS(ctx, "")
		return err == nil && !strings.Contains(string(doc), bad.ID)
	}, time.Minute, time.Millisecond)
	require.Equal(t, next, activeKey(t, three).ID)
	require.NoError(t, validate(one, issue(t, three, aliceSession).Access))
}
