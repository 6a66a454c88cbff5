// The stored record of a client.

package clients

import (
	"bytes"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken/internal/clientauth"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/store"
)

// Record is a client as it is stored.
type Record struct {
	V              int                 `json:"v"`
	Name           string              `json:"name,omitempty"`
	Public         bool                `json:"public,omitempty"`
	GrantTypes     []string            `json:"grant_types,omitempty"`
	Scopes         []string            `json:"scopes,omitempty"`
	Audiences      []string            `json:"aud,omitempty"`
	MayImpersonate bool                `json:"impersonate,omitempty"`
	Lifetimes      Lifetimes           `json:"lifetimes,omitzero"`
	Disabled       bool                `json:"disabled,omitempty"`
	Created        int64               `json:"created"` // Unix ms
	Secrets        []clientauth.Secret `json:"secrets,omitempty"`

	RedirectURIs    []string           `json:"redirect_uris,omitempty"`
	AuthMethod      string             `json:"auth,omitempty"`
	Keys            json.RawMessage    `json:"jwks,omitempty"`
	TLSName         string             `json:"tls_name,omitempty"`
	BindDPoP        bool               `json:"bind_dpop,omitempty"`
	BindCertificate bool               `json:"bind_cert,omitempty"`
	Registration    *clientauth.Secret `json:"registration,omitempty"` // verifier of its registration token
	Most            Most               `json:"most,omitzero"`          // that it may register itself for
	Leaked          [][]byte           `json:"leaked,omitempty"`       // hashes of secrets that a declaration must not bring back
	Expires         int64              `json:"expires,omitempty"`      // Unix ms; 0: never
	record.Ext
}

// Lifetimes are a client's own, where they are not zero. They are stored under these names.
type Lifetimes struct{ Access, MaxAccess, Grant, Idle, APIKey time.Duration }

// Most is the most that a client may register itself for, set by its host: a nil list and false leave it to the client. An older
// process that cannot read it refuses the client, which is right: it would let the client widen itself.
type Most struct {
	Scopes          *[]string `json:"scopes,omitempty"`
	GrantTypes      *[]string `json:"grant_types,omitempty"`
	BindDPoP        bool      `json:"bind_dpop,omitempty"`
	BindCertificate bool      `json:"bind_cert,omitempty"`
}

const (
	maxRecord = 15 << 10       // bytes
	Slack     = 24 * time.Hour // after its end a client's record is there still, for people who wonder

	// maxLeaked is how many leaked secrets of one client are remembered, the latest ones.
	maxLeaked = 16
)

// ClientForm is the stored form of clients.
var ClientForm = record.Form[Record]{Kind: store.KindClient, Check: func(r *Record) error {
	if _, _, err := clientauth.Keys(r.Keys); err != nil {
		return fmt.Errorf("its keys: %s", fault.DetailOf(err))
	}
	return commit.First(r.V)
}}

// Put adds r to c. fault.InvalidRequest: it takes too much room, or nobody could read it back.
func (r *Record) Put(c *commit.Change, id string, expect store.Version) error {
	s := store.Record{ID: id, Client: id}
	if r.Expires != 0 {
		s.Expires = r.Expires + Slack.Milliseconds()
	}
	w, err := commit.Write(&ClientForm, s, r)
	if err != nil {
		return err
	}
	if n := len(w.Record().Data); n > maxRecord {
		return fault.Fail(fault.InvalidRequest, "client %q takes %d bytes, at most %d", id, n, maxRecord)
	}
	c.Put(w, expect)
	return nil
}

// Same reports whether r and o are stored as the same bytes.
func (r *Record) Same(o *Record) bool {
	a, err1 := json.Marshal(r)
	b, err2 := json.Marshal(o)
	return err1 == nil && err2 == nil && bytes.Equal(a, b)
}

// Live are the secrets that have not ended by now, the oldest first.
func (r *Record) Live(now time.Time) []clientauth.Secret {
	return clientauth.AppendLive(nil, r.Secrets, now)
}

// Rotate adds a secret. Of those that are live the newest goes on for overlap, the others end.
func (r *Record) Rotate(fresh clientauth.Secret, now time.Time, overlap time.Duration) {
	live := r.Live(now)
	if len(live) > 0 && overlap > 0 {
		last := live[len(live)-1]
		if until := now.Add(overlap).UnixMilli(); last.Expires == 0 || last.Expires > until {
			last.Expires = until
		}
		r.Secrets = []clientauth.Secret{last, fresh}
		return
	}
	r.Secrets = []clientauth.Secret{fresh}
}

// Register makes token the verifier of the client's registration token. What the client has at its first one stays the most that it
// may have.
func (r *Record) Register(token clientauth.Secret) {
	if r.Registration == nil {
		r.Most = Most{Scopes: listed(sorted(r.Scopes)), GrantTypes: listed(r.GrantTypes), BindDPoP: r.BindDPoP, BindCertificate: r.BindCertificate}
	}
	r.Registration = &token
}

// IsRegistration compares the verifier of the client's registration token in constant time.
func (r *Record) IsRegistration(hash [32]byte) bool {
	var want clientauth.Secret
	if r.Registration != nil {
		want = *r.Registration
	}
	return subtle.ConstantTimeCompare(hash[:], want.Hash[:]) == 1
}

// Decide notes in r what the host has changed since old of a client that may change itself.
func (r *Record) Decide(old *Record) {
	if old.Registration == nil && old.Most == (Most{}) {
		return
	}
	if !sameMembers(r.Scopes, old.Scopes) {
		r.Most.Scopes = listed(sorted(r.Scopes))
	}
	if !sameMembers(r.GrantTypes, old.GrantTypes) {
		r.Most.GrantTypes = listed(r.GrantTypes)
	}
	if r.BindDPoP != old.BindDPoP {
		r.Most.BindDPoP = r.BindDPoP
	}
	if r.BindCertificate != old.BindCertificate {
		r.Most.BindCertificate = r.BindCertificate
	}
}

// listed is a copy that is not nil, which would be stored as null and read as "the client decides".
func listed(list []string) *[]string {
	x := append([]string{}, list...)
	return &x
}

func sorted(list []string) []string { return slices.Compact(slices.Sorted(slices.Values(list))) }

func sameMembers(a, b []string) bool {
	in := func(list []string) func(string) bool {
		return func(x string) bool { return !slices.Contains(list, x) }
	}
	return !slices.ContainsFunc(a, in(b)) && !slices.ContainsFunc(b, in(a))
}

// Withdraw drops the secret or registration token with this hash, and reports whether it was there and live. A secret is remembered:
// its host may declare it again.
func (r *Record) Withdraw(hash [32]byte, now time.Time) bool {
	if r.Registration != nil && r.Registration.Hash == hash {
		r.Registration = nil
		return true
	}
	is := func(x clientauth.Secret) bool { return x.Hash == hash }
	if !slices.ContainsFunc(r.Live(now), is) {
		return false
	}
	r.drop(is)
	return true
}

// Forget is Withdraw by the ID of a generated secret, live or not.
func (r *Record) Forget(id []byte) bool {
	is := func(x clientauth.Secret) bool { return bytes.Equal(x.ID, id) }
	n := len(r.Secrets)
	r.drop(is)
	if r.Registration != nil && is(*r.Registration) {
		r.Registration = nil
		return true
	}
	return len(r.Secrets) < n
}

func (r *Record) drop(is func(clientauth.Secret) bool) {
	r.Secrets = slices.DeleteFunc(r.Secrets, func(x clientauth.Secret) bool {
		if is(x) {
			r.Leaked = append(r.Leaked, x.Hash[:])
		}
		return is(x)
	})
	r.Leaked = r.Leaked[max(0, len(r.Leaked)-maxLeaked):]
}
