// How signing keys come and go: made, rewritten, rotated when they are due or by call, each under the ring's lock.

package keyring

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/store"
)

// make creates a key of a lane that signs from activates on.
func (k *Ring) make(root *rootSecret, l *lane, activates int64) (string, *keyRecord, error) {
	private, err := newPrivateKey(l.alg)
	if err != nil {
		return "", nil, err
	}
	rec := &keyRecord{V: 1, Alg: l.alg, Created: k.now().UnixMilli(), Activates: activates}
	var kid string
	var plain []byte
	if secret, ok := private.([]byte); ok {
		kid, plain = opaque.NewID(k.now()).String(), secret
	} else {
		signer, err := jws.NewSigner("", rec.Alg, private, false)
		if err != nil {
			return "", nil, err
		}
		signer.Public.Audience = l.audience
		if kid, err = rec.describe(signer.Public); err != nil {
			return "", nil, err
		}
		if plain, err = x509.MarshalPKCS8PrivateKey(private); err != nil {
			return "", nil, err
		}
	}
	rec.Sealed = root.seal(plain, rec.aad(k.c.Namespace(), kid))
	k.prove(root, kid, rec)
	return kid, rec, nil
}

// describe notes the public half.
func (rec *keyRecord) describe(pub *jws.PublicKey) (kid string, err error) {
	if kid, err = jws.Thumbprint(pub.Key); err != nil {
		return "", err
	}
	named, err := jws.NewPublicKey(kid, rec.Alg, pub.Key)
	if err != nil {
		return "", err
	}
	named.Audience = pub.Audience
	doc, err := jws.MarshalJWK(named)
	rec.JWK = string(doc)
	return kid, err
}

func (k *Ring) prove(root *rootSecret, kid string, rec *keyRecord) {
	rec.Root = root.kid
	rec.MAC = root.mac(rec.bytes(k.c.Namespace(), kid))
}

func newPrivateKey(alg string) (any, error) {
	switch alg {
	case "ES256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "EdDSA":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case "RS256", "PS256":
		return rsa.GenerateKey(rand.Reader, 2048)
	case "HS256":
		key := make([]byte, 32)
		rand.Read(key)
		return key, nil
	}
	return nil, fault.Fail(fault.InvalidRequest, "algorithm %q", alg)
}

// goneAfter is a purge time behind the death of the last token of a key whose successor begins at activates: longer than
// any MaxAccess that a configuration may hold.
func goneAfter(activates int64) int64 { return activates + (48 * time.Hour).Milliseconds() }

func (k *Ring) put(c *commit.Change, kid string, rec *keyRecord, expires int64, expect store.Version) error {
	return commit.Put(c, &keyForm, store.Record{ID: keyPrefix + kid, Expires: expires}, rec, expect)
}

// locked is the version of the ring's lock: it is read before the ring that a change is made from.
func (k *Ring) locked() store.Version {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.lock
}

// putLock takes the ring for this change alone.
func (k *Ring) putLock(c *commit.Change, lock store.Version) error {
	now := k.now().UnixMilli()
	rec := lockRecord{V: 1, N: now, Sealed: k.sealedSince()}
	if rec.Sealed == 0 && k.c.Seal != nil && k.sealsAll(c) {
		rec.Sealed = now
	}
	return commit.Put(c, &lockForm, store.Record{ID: keyLock}, &rec, lock)
}

// change alters the ring: f fills the change from the ring as it stands, and is asked again after another process was
// first. A change that stays empty is not written.
func (k *Ring) change(ctx context.Context, f func(c *commit.Change, r *ring) error) error {
	for try := 0; try < keyTries; try++ {
		if err := k.refresh(ctx); err != nil {
			return fault.NoAnswer(err, "follow the store")
		}
		lock := k.locked()
		// What another process made meanwhile lies under roots of its own: a ring without them looks emptier than it is. What comes
		// in from here on has another lock.
		if err := k.openRoots(ctx); err != nil {
			return err
		}
		c := commit.NewChange()
		if err := f(c, k.ring.Load()); err != nil {
			return err
		}
		if len(c.Puts) == 0 {
			return nil
		}
		if err := k.putLock(c, lock); err != nil {
			return err
		}
		err := k.commit(ctx, c)
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return fault.Retry("other processes keep changing the signing keys")
}

// add puts a new key of a lane into c, and gives the one before it a purge time.
func (k *Ring) add(ctx context.Context, c *commit.Change, l *lane, kid string, rec *keyRecord, how string) error {
	if n := len(l.keys); n > 0 && l.keys[n-1].rec.Compromised == 0 { // else it stays for ever; those before have one already
		old := &l.keys[n-1]
		if err := k.put(c, old.kid, &old.rec, goneAfter(rec.Activates), old.version); err != nil {
			return err
		}
	}
	if err := k.put(c, kid, rec, 0, store.Version{}); err != nil {
		return err
	}
	k.keyChanged(ctx, c, kid, rec.Alg, how)
	return nil
}

// Rotate brings a new key forward as soon as every validator can know it: after half of Config.KeyRotation, 15 minutes at
// most. Tokens of the old one stay good until they expire. Audiences with keys of their own get new ones too.
func (k *Ring) Rotate(ctx context.Context) error {
	if err := k.c.Ready(); err != nil {
		return err
	}
	for _, l := range k.ring.Load().lanes {
		if l.alg == "" {
			continue
		}
		err := k.change(ctx, func(c *commit.Change, r *ring) error { return k.forward(ctx, c, r, r.lane(l.audience)) })
		if err != nil {
			return err
		}
	}
	return nil
}

// Ensure opens the roots and makes the ring usable: called by New, before anything is signed.
func (k *Ring) Ensure(ctx context.Context) error {
	if err := k.openRoots(ctx); err != nil {
		return fault.Wrong("Seal", "%s", fault.DetailOf(err)) // said apart: change calls it whatever fails
	}
	if err := k.sealClear(ctx); err != nil {
		return err
	}
	err := k.change(ctx, func(c *commit.Change, r *ring) error {
		if len(r.roots) == 0 {
			root, rec, err := k.newRoot(ctx, r)
			if err != nil {
				return fault.Wrong("Seal", "%s", fault.DetailOf(err))
			}
			c.Put(rec, store.Version{})
			r = &ring{roots: []*rootSecret{root}, lanes: r.lanes}
		}
		return k.begin(ctx, c, r, &r.lanes[0])
	})
	for _, l := range k.ring.Load().lanes[1:] {
		if err == nil && l.alg != "" {
			err = k.change(ctx, func(c *commit.Change, r *ring) error { return k.begin(ctx, c, r, r.lane(l.audience)) })
		}
	}
	if err != nil {
		return err
	}
	// Another process may have made the root.
	if err := k.openRoots(ctx); err != nil {
		return fault.Wrong("Seal", "%s", fault.DetailOf(err))
	}
	r := k.ring.Load()
	if len(r.roots) == 0 || r.lanes[0].newest() == nil {
		return fault.Fail(fault.Unavailable, "the ring has no usable key: its records were altered")
	}
	return k.atRest(r)
}

// begin makes the first key of a lane, and another when the configured algorithm is another.
func (k *Ring) begin(ctx context.Context, c *commit.Change, r *ring, l *lane) error {
	newest := l.live()
	if newest != nil && (newest.rec.Outside || newest.rec.Alg == l.alg) {
		return nil
	}
	activates := k.now().UnixMilli()
	if newest != nil || l.audience != "" && !k.young(r) { // validators must know the key first
		activates += k.lead().Milliseconds()
	}
	kid, rec, err := k.make(k.current(r), l, activates)
	if err != nil {
		return err
	}
	return k.add(ctx, c, l, kid, rec, "created")
}

// young reports whether no validator can have read an older set of keys than this.
func (k *Ring) young(r *ring) bool {
	return len(r.keys) == 0 || k.now().UnixMilli()-r.keys[0].rec.Created < k.lead().Milliseconds()
}

// Run rotates by schedule, opens roots that other processes made, and withdraws keys whose time is over.
func (k *Ring) Run(ctx context.Context) {
	tick := min(max(k.lead()/8, 10*time.Millisecond), keyTick)
	for {
		t := time.NewTimer(follow.Jitter(tick))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-k.kick:
		case <-t.C:
		}
		t.Stop()
		k.Tend(ctx)
	}
}

// Tend is one look at the ring.
func (k *Ring) Tend(ctx context.Context) {
	if err := k.openRoots(ctx); err != nil {
		k.c.Log.Error("apitoken: a root secret cannot be opened", "error", err)
	}
	k.tell()
	k.heal(ctx)
	if err := k.rotateIfDue(ctx); err != nil && ctx.Err() == nil {
		k.c.Log.Warn("apitoken: rotation of the signing key failed and will be tried again", "error", err)
	}
	if err := k.spend(ctx); err != nil && ctx.Err() == nil {
		k.c.Log.Warn("apitoken: signing keys could not be sealed under the newest root secret yet", "error", err)
	}
}

// due reports whether a next key should be made in a lane, and from when it signs.
func (k *Ring) due(r *ring, l *lane) (bool, int64) {
	if l.alg == "" {
		return false, 0
	}
	newest := l.live()
	now, lead := k.now().UnixMilli(), k.lead().Milliseconds()
	switch {
	case newest == nil && (l.audience == "" || k.young(r)):
		return true, now // all were compromised
	case newest == nil:
		return true, now + lead // until then the common key signs
	case newest.rec.Outside:
		return false, 0
	case k.outdated(r, newest):
		return true, max(now+lead, newest.rec.Activates+1)
	case k.c.Rotation < 0:
		return false, 0
	}
	at := newest.rec.signs() + k.c.Rotation.Milliseconds()
	return now >= at-lead, max(at, now+lead)
}

// outdated reports whether a key was made before the current root was known to every process, and so under an older one: after
// RotateSecrets, whoever has that may have the key.
func (k *Ring) outdated(r *ring, x *ringKey) bool {
	root := k.current(r)
	known := root.created + k.lead().Milliseconds()
	return k.c.Seal != nil && !x.rec.Outside && root != r.roots[0] && x.rec.Created < known && known <= k.now().UnixMilli()
}

// abandoned reports whether the newest key of a lane has passed its time, or an older root secret has, and no process has made
// another: none has the lane in its configuration any more.
func (k *Ring) abandoned(r *ring, l *lane) bool {
	newest := l.live()
	if l.alg != "" || newest == nil || newest.rec.Outside {
		return false
	}
	now, lead := k.now().UnixMilli(), k.lead().Milliseconds()
	if k.outdated(r, newest) {
		return now >= k.current(r).created+2*lead // a process that has the lane makes another after one
	}
	return k.c.Rotation >= 0 && now >= newest.rec.signs()+k.c.Rotation.Milliseconds()+lead
}

func (k *Ring) rotateIfDue(ctx context.Context) error {
	r := k.ring.Load()
	if len(r.roots) == 0 {
		return nil
	}
	var failed error
	for i := range r.lanes {
		if ok, _ := k.due(r, &r.lanes[i]); !ok && !k.abandoned(r, &r.lanes[i]) {
			continue
		}
		began := time.Now()
		audience := r.lanes[i].audience
		err := k.change(ctx, func(c *commit.Change, r *ring) error { return k.rotateLane(ctx, c, r, r.lane(audience)) })
		k.c.Rotated(ctx, err, time.Since(began))
		failed = errors.Join(failed, err)
	}
	return failed
}

// rotateLane does what the clock asks for in a lane.
func (k *Ring) rotateLane(ctx context.Context, c *commit.Change, r *ring, l *lane) error {
	if k.abandoned(r, l) {
		x := l.live()
		rec := x.rec
		rec.Ends = k.now().UnixMilli()
		k.prove(r.by[rec.Root], x.kid, &rec)
		k.keyChanged(ctx, c, x.kid, rec.Alg, "retired: no process makes keys for its audience")
		return k.put(c, x.kid, &rec, goneAfter(rec.Ends), x.version)
	}
	ok, at := k.due(r, l)
	if !ok {
		return nil
	}
	kid, rec, err := k.make(k.current(r), l, at)
	if err != nil {
		return err
	}
	return k.add(ctx, c, l, kid, rec, "created")
}

// forward brings a new key of a lane on its way.
func (k *Ring) forward(ctx context.Context, c *commit.Change, r *ring, l *lane) error {
	now := k.now().UnixMilli()
	if x := l.live(); x != nil && x.rec.Activates > now {
		soon := max(x.rec.Created+k.lead().Milliseconds(), now)
		if soon >= x.rec.Activates {
			return nil
		}
		rec := x.rec
		rec.Activates = soon
		return k.rewrite(ctx, c, r, x, rec, "brought forward")
	}
	kid, rec, err := k.make(k.current(r), l, now+k.lead().Milliseconds())
	if err != nil {
		return err
	}
	return k.add(ctx, c, l, kid, rec, "created")
}

// rewrite puts a key's record anew, under the root that sealed it.
func (k *Ring) rewrite(ctx context.Context, c *commit.Change, r *ring, x *ringKey, rec keyRecord, how string) error {
	k.prove(r.by[rec.Root], x.kid, &rec)
	if err := k.put(c, x.kid, &rec, 0, x.version); err != nil {
		return err
	}
	k.keyChanged(ctx, c, x.kid, rec.Alg, how)
	return nil
}
