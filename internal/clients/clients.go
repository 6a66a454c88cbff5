// Package clients holds the registered clients of a service: how one is stored, which ones there are, and what makes a registration
// contradict itself. It owns the stored form (Record), the Directory of the clients that this process knows, and the indexes beside it:
// which clients have a generated secret, how many have a chosen one, how many end by themselves.
//
// It promises that a client whose record cannot be read is nobody's: it is unavailable to whoever is it or names it, and never
// unknown. What a client may register itself for never grows by what it asks for itself (Most). A secret that has leaked is remembered
// in the record, so that no declaration brings it back.
//
// Order: the follower of the store calls Apply, SetAside and Reset, and Sweep waits for its turn, so that one of them runs at a time;
// readers take no lock. Whoever authenticates looks here first and asks the store only about a credential that is not right, once for
// all who wait, and after too many failures not at all. Records are written by the caller, to whose change Record.Put adds them, but for leaked secrets:
// EndLeaked and Forget take them out, by internal/revoke.
//
// The root's Clients call it; C is the root's Client, made once from each record.
package clients

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/internal/clientauth"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/revoke"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/internal/throttle"
	"github.com/apitoken-go/apitoken/store"
)

// Config is what a Directory stands on.
type Config[C any] struct {
	Terms
	Public func(id string, r *Record) C // shares nothing with r that changes
	Proofs *clientauth.Checker
	Revoke *revoke.Writer
	State  func() *follow.Follower // set before anybody authenticates
	Now    func() time.Time
}

// Directory is what this process knows of the clients. Use New.
type Directory[C any] struct {
	c       Config[C]
	known   sync.Map                  // ID → *Known[C]
	made    sync.Map                  // opaque.ID of a generated secret → IDs of the clients that have it
	chosen  atomic.Int64              // clients that have a secret that a host chose
	passing atomic.Int64              // clients that end by themselves
	looked  atomic.Pointer[time.Time] // when an unknown ID made Find look at the store
}

// New makes an empty Directory.
func New[C any](c Config[C]) *Directory[C] { return &Directory[C]{c: c} }

// Known is a client as this process knows it. It does not change: a newer record makes another one.
type Known[C any] struct {
	ID     string
	Client C // as the host sees it; its lists are shared
	Record Record

	version store.Version
	proof   *clientauth.Credentials
	damaged error // the record cannot be read
}

// Apply enters a client that the store has. An error: it cannot be read.
func (d *Directory[C]) Apply(r store.Record) error {
	k := &Known[C]{ID: r.ID, version: r.Version}
	err := commit.Read(&ClientForm, r, &k.Record)
	if err == nil {
		k.proof, err = k.Record.credentials(r.ID)
	}
	if err != nil {
		return err
	}
	d.enter(k)
	return nil
}

// SetAside keeps everybody from acting as a client whose record cannot be read.
func (d *Directory[C]) SetAside(r store.Record, why error) {
	d.enter(&Known[C]{ID: r.ID, version: r.Version, proof: &clientauth.Credentials{Client: r.ID}, damaged: why})
}

func (d *Directory[C]) enter(k *Known[C]) {
	k.Client = d.c.Public(k.ID, &k.Record)
	old := d.Lookup(k.ID)
	d.known.Store(k.ID, k)
	d.reindex(old, k)
}

// Reset forgets all.
func (d *Directory[C]) Reset() {
	d.known.Clear()
	d.made.Clear()
	d.chosen.Store(0)
	d.passing.Store(0)
}

// Sweep forgets the clients whose records may have been purged, which ended before the given time.
func (d *Directory[C]) Sweep(ctx context.Context, before time.Time) {
	release, err := d.c.State().Hold(ctx)
	if err != nil {
		return
	}
	defer release()
	for id, v := range d.known.Range {
		k := v.(*Known[C])
		if end := k.Record.Expires; end != 0 && end+Slack.Milliseconds() < before.UnixMilli() && d.known.CompareAndDelete(id, v) {
			d.reindex(k, nil)
		}
	}
}

// Lookup is the client with this ID as this process knows it, nil if it knows none.
func (d *Directory[C]) Lookup(id string) *Known[C] {
	if v, ok := d.known.Load(id); ok {
		return v.(*Known[C])
	}
	return nil
}

// Find is Lookup for an ID that a stranger names. Where there is none the store is looked at for news, once a second
// however many ask, as another process may have made the client a moment ago. fault.NotFound, fault.Unavailable.
func (d *Directory[C]) Find(ctx context.Context, id string) (*Known[C], error) {
	k := d.Lookup(id)
	if k == nil && text.IsName(id) {
		now, last := time.Now(), d.looked.Load()
		if (last == nil || now.Sub(*last) >= lookEvery) && d.looked.CompareAndSwap(last, &now) {
			if err := d.c.State().Refresh(ctx); err != nil {
				return nil, fault.NoAnswer(err, "look for a client")
			}
			k = d.Lookup(id)
		}
	}
	if k == nil || k.ended(d.c.Now()) {
		return nil, fault.Fail(fault.NotFound, "no client %q", id)
	}
	return k, k.readable()
}

const lookEvery = time.Second

// Await gives this process one read of the store to hear of a client that a host names, which another process may have made.
// Whether it is there then is for Enabled to say.
func (d *Directory[C]) Await(ctx context.Context, id string) error {
	if id == "" || id == d.c.FirstParty || d.Lookup(id) != nil || !text.IsName(id) {
		return nil
	}
	if err := d.c.State().Look(ctx); err != nil {
		return fault.NoAnswer(err, "look for a client that may be new")
	}
	return nil
}

// Enabled is a client that a host names. fault.InvalidClient: there is none; fault.Denied: it is disabled; fault.Unavailable: its
// record cannot be read.
func (d *Directory[C]) Enabled(id string) (*Known[C], error) {
	k := d.Lookup(id)
	if k == nil {
		return nil, fault.Fail(fault.InvalidClient, "no client %q", id)
	}
	if k.ended(d.c.Now()) {
		return nil, fault.Fail(fault.InvalidClient, "client %q has ended at %s", id, time.UnixMilli(k.Record.Expires).UTC().Format(time.RFC3339))
	}
	return k, d.usable(k)
}

// ended reports whether a client that ends by itself has done so.
func (k *Known[C]) ended(now time.Time) bool {
	return k.Record.Expires != 0 && k.Record.Expires <= now.UnixMilli()
}

func (k *Known[C]) readable() error {
	if k.damaged != nil {
		return fault.NoAnswer(k.damaged, "the record of client "+k.ID+" cannot be read")
	}
	return nil
}

// usable says why nobody may act as a client that is here.
func (d *Directory[C]) usable(k *Known[C]) error {
	if err := k.readable(); err != nil {
		return err
	}
	if k.Record.Disabled {
		return fault.Fail(fault.Denied, "client %q is disabled", k.ID)
	}
	if d.c.FAPI { // it may be older than the profile
		if err := k.proof.CheckFAPI(); err != nil {
			return fault.Fail(fault.InvalidClient, "%s", fault.DetailOf(err))
		}
	}
	return nil
}

// Authenticate confirms a client, in constant time. fault.InvalidClient, never saying whether the ID or the credential was wrong;
// fault.Denied: the credential is right and the client disabled; fault.InvalidRequest: a secret and an assertion, of which only one may
// be there (RFC 6749 §2.3); fault.Limited, fault.Unavailable. It sets a.Client where only the assertion says which client it is of.
func (d *Directory[C]) Authenticate(ctx context.Context, a *clientauth.Attempt) (*Known[C], clientauth.Proof, error) {
	if a.Client == "" && a.Assertion != "" {
		a.Client = clientauth.Claimant(a.Assertion)
	}
	if a.Secret != "" && a.Assertion != "" {
		return nil, clientauth.Proof{}, fault.Fail(fault.InvalidRequest, "a secret and an assertion: one of them")
	}
	k := d.Lookup(a.Client)
	proof, ok, err := d.prove(ctx, k, a)
	if err == nil && !ok && text.IsName(a.Client) && !d.c.Proofs.Failed(a) {
		// Another process may have made the client, or given it another secret or key, and this one not have heard of it yet. A
		// wrong credential of a client that exists waits as long as an unknown client does.
		if err := d.c.State().Look(ctx); err != nil {
			d.c.Proofs.Fail(a)
			return nil, proof, fault.NoAnswer(err, "look for a client or a credential that may be new")
		}
		if next := d.Lookup(a.Client); next != k {
			k = next
			proof, ok, err = d.prove(ctx, k, a)
		}
	}

	switch {
	case err != nil:
	case ok && k.ended(d.c.Now()):
		err = fault.Fail(fault.InvalidClient, "the client has ended by itself")
	case ok:
		err = d.usable(k)
	case k != nil && k.damaged != nil:
		err = k.readable()
	case !d.c.Proofs.Fail(a):
		err = &fault.Error{Code: fault.Limited, RetryAfter: throttle.Window, Detail: "too many failures of this client from this source"}
	default:
		err = fault.Fail(fault.InvalidClient, "unknown client or wrong secret")
	}
	return k, proof, err
}

func (d *Directory[C]) prove(ctx context.Context, k *Known[C], a *clientauth.Attempt) (clientauth.Proof, bool, error) {
	var x *clientauth.Credentials
	if k != nil {
		x = k.proof
	}
	return d.c.Proofs.Prove(ctx, x, a, d.chosen.Load() == 0)
}

// Still is Enabled for a client that proof has convinced us of: fault.InvalidClient where its secret has ended since.
func (d *Directory[C]) Still(id string, proof clientauth.Proof) (*Known[C], error) {
	k, err := d.Enabled(id)
	if err == nil && proof.Made && !slices.ContainsFunc(k.Record.Live(d.c.Now()), func(x clientauth.Secret) bool {
		return x.Hash == proof.Hash && !d.c.Proofs.Ended(&x)
	}) {
		return nil, fault.Fail(fault.InvalidClient, "its secret has ended since it was confirmed")
	}
	return k, err
}

// Passing is the number of clients that end by themselves.
func (d *Directory[C]) Passing() int { return int(d.passing.Load()) }

// Count is the number of clients, and of those that are disabled.
func (d *Directory[C]) Count() (all, disabled int) {
	now := d.c.Now()
	for _, v := range d.known.Range {
		if k := v.(*Known[C]); !k.ended(now) {
			if all++; k.Record.Disabled {
				disabled++
			}
		}
	}
	return all, disabled
}

// With are the IDs of the clients that have the generated secret with this ID, or had it a moment ago.
func (d *Directory[C]) With(id opaque.ID) []string {
	if v, ok := d.made.Load(id); ok {
		return v.([]string)
	}
	return nil
}

// reindex keeps the indexes. before is nil for a client that is new, now for one that has gone.
func (d *Directory[C]) reindex(before, now *Known[C]) {
	had, has := before.index(), now.index()
	d.chosen.Add(has.chosen - had.chosen)
	d.passing.Add(has.passing - had.passing)
	for _, id := range has.made {
		if !slices.Contains(had.made, id) {
			d.made.Store(id, append(slices.Clone(d.With(id)), now.ID))
		}
	}
	for _, id := range had.made {
		if slices.Contains(has.made, id) {
			continue
		}
		if list := slices.DeleteFunc(slices.Clone(d.With(id)), func(s string) bool { return s == before.ID }); len(list) > 0 {
			d.made.Store(id, list)
		} else {
			d.made.Delete(id)
		}
	}
}

// indexed is what the indexes hold of one client: 1 for what it is, and its generated secrets, each once.
type indexed struct {
	chosen, passing int64
	made            []opaque.ID
}

func (k *Known[C]) index() (x indexed) {
	if k == nil {
		return x
	}
	if k.Record.Expires != 0 {
		x.passing = 1
	}
	all := k.Record.Secrets
	if k.Record.Registration != nil {
		all = append(slices.Clip(all), *k.Record.Registration)
	}
	for i := range all {
		if all[i].Chosen() {
			x.chosen = 1
		}
		if id := all[i].ID; len(id) == len(opaque.ID{}) && !slices.Contains(x.made, opaque.ID(id)) {
			x.made = append(x.made, opaque.ID(id))
		}
	}
	return x
}
