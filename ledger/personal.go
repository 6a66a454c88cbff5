package ledger

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
)

// What of an event concerns whom: subject and target the subject, actor the actor, and where the request came from
// and what was said about it (origin, reason, extra) both, and whoever else it tells of. IDs of tokens, grants, clients
// and issuers, scopes and times stay in clear: without the persons they are pseudonyms.

// personal is the plain text of a blob.
type personal struct {
	Subject   string            `json:"subject,omitempty"`
	Actor     string            `json:"actor,omitempty"`
	Target    string            `json:"target,omitempty"`
	Reason    string            `json:"reason,omitempty"`
	Address   netip.Addr        `json:"address,omitzero"`
	UserAgent string            `json:"user_agent,omitempty"`
	RequestID string            `json:"request_id,omitempty"`
	Extra     map[string]string `json:"extra,omitempty"`
}

// library are the events whose Reason is one of this module's own words, never what a host or a client wrote.
var library = map[event.Type]bool{
	event.Refused: true, event.ClientRefused: true, event.KeyChanged: true,
	event.RoleChanged: true, event.ClientChanged: true, event.APIKeyChanged: true, event.RecordChanged: true,
	EventGap: true,
}

// hide moves what is personal in l from l.Event into blobs.
func (v *Vault) hide(l *Leaf) error {
	e := &l.Event
	shared := personal{Address: e.Address.WithZone(""), UserAgent: e.UserAgent, RequestID: e.RequestID}
	if !library[e.Type] {
		shared.Reason = e.Reason
	}
	if e.Type != event.KeyChanged && e.Type != EventGap { // theirs speaks of keys and of the ledger
		shared.Extra = e.Extra
	}
	target := e.Target.String()
	third := alsoOf(e)
	if third == "" && e.Subject == "" && e.Actor == "" {
		if !e.Address.IsValid() && e.UserAgent == "" && len(shared.Extra) == 0 && target == "" && shared.Reason == "" {
			return nil // speaks of nobody
		}
		// Without a person the address is one. Events without an address, such as refusals summed up, share a key.
		third = addressed(e.Address)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.file == nil {
		return errors.New("ledger: the vault is closed")
	}
	var keys [][]byte // in the order in which Reveal gathers them
	var err error
	need := func(ref *string, name string) (key []byte) {
		if err == nil {
			var p person
			p, err = v.person(name)
			*ref, key = p.ref, p.key
		}
		return key
	}
	seal := func(out *[]byte, field string, x personal, keys ...[]byte) {
		if err == nil {
			*out, err = sealPersonal(l, field, x, keys)
		}
	}
	var subject, actor []byte
	if e.Subject != "" {
		subject = need(&l.SubjectRef, named(e.Issuer, e.Subject))
		keys = append(keys, subject)
	}
	self := actedAlone(e)
	if e.Actor != "" {
		if actor = need(&l.ActorRef, named(e.ActorIssuer, e.Actor)); !self {
			keys = append(keys, actor)
		}
	}
	if third != "" {
		keys = append(keys, need(&l.OriginRef, third))
	}
	if len(keys) == 1 {
		shared.Subject, shared.Actor, shared.Target = e.Subject, e.Actor, target
	} else { // of each what is that one's alone outlives the others
		switch {
		case subject == nil:
			shared.Target = target
		case self:
			seal(&l.SealedSubject, "sealed_subject", personal{Subject: e.Subject, Actor: e.Actor, Target: target}, subject)
		default:
			seal(&l.SealedSubject, "sealed_subject", personal{Subject: e.Subject, Target: target}, subject)
		}
		if actor != nil && !self {
			seal(&l.SealedActor, "sealed_actor", personal{Actor: e.Actor}, actor)
		}
	}
	seal(&l.Sealed, "sealed", shared, keys...)
	if err != nil {
		return err
	}
	e.Subject, e.Actor, e.Target, e.Origin = "", "", apitoken.Target{}, apitoken.Origin{}
	if shared.Extra != nil {
		e.Extra = nil
	}
	if !library[e.Type] {
		e.Reason = ""
	}
	return nil
}

// actedAlone reports whether the subject of an event is its actor too: one person with one key.
func actedAlone(e *apitoken.Event) bool { return e.Actor == e.Subject && e.ActorIssuer == e.Issuer }

// alsoOf is the name of a third one whom an event tells of, beside its subject and actor: who acts by a token that was
// exchanged, and where an alert about nobody came from, whose actor is a detector. Empty: nobody.
func alsoOf(e *apitoken.Event) string {
	if by := e.Extra["actor"]; by != "" && !(by == e.Subject && e.Issuer == "") && !(by == e.Actor && e.ActorIssuer == "") {
		return named("", by)
	}
	if e.Type == event.Alert && e.Subject == "" && e.Address.IsValid() {
		return addressed(e.Address)
	}
	return ""
}

// personalKey is the key of one blob of one event: all of keys are needed to make it.
func personalKey(l *Leaf, field string, keys [][]byte) []byte {
	m := hmac.New(sha256.New, keys[0])
	for _, part := range [...]string{"apitoken ledger leaf v1", field, l.Event.ID} {
		m.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		m.Write([]byte(part))
	}
	for _, k := range keys[1:] {
		m.Write(k)
	}
	return m.Sum(nil)
}

func sealPersonal(l *Leaf, field string, x personal, keys [][]byte) ([]byte, error) {
	plain, err := json.Marshal(x)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	aead, err := newGCM(personalKey(l, field, keys))
	if err != nil {
		return nil, err
	}
	out := make([]byte, aead.NonceSize(), aead.NonceSize()+len(plain)+aead.Overhead())
	rand.Read(out)
	return aead.Seal(out, out, plain, nil), nil
}

func openPersonal(l *Leaf, field string, sealed []byte, keys [][]byte) (x personal, err error) {
	aead, err := newGCM(personalKey(l, field, keys))
	if err != nil {
		return x, err
	}
	if len(sealed) < aead.NonceSize() {
		return x, errors.New("ledger: a record's sealed part is too short")
	}
	plain, err := aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], nil)
	if err != nil {
		return x, errors.New("ledger: a record's sealed part does not open with the persons' keys")
	}
	if err := json.Unmarshal(plain, &x); err != nil {
		return x, fmt.Errorf("ledger: a record's sealed part: %w", err)
	}
	return x, nil
}

// Reveal returns the event of l with what is sealed in it, and whether something is missing because the key of a person was
// erased.
func (v *Vault) Reveal(l Leaf) (e apitoken.Event, erased bool, err error) {
	e = l.Event
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.file == nil {
		return e, false, errors.New("ledger: the vault is closed")
	}
	var keys [][]byte
	lost := false // one of the keys that Sealed needs
	key := func(ref string) []byte {
		if ref == "" || err != nil {
			return nil
		}
		var p person
		var ok bool
		if p, ok, err = v.byRef(ref); !ok || err != nil {
			lost = true
			return nil
		}
		keys = append(keys, p.key)
		return p.key
	}
	subject := key(l.SubjectRef)
	var actor []byte
	if l.ActorRef != l.SubjectRef {
		actor = key(l.ActorRef)
	}
	key(l.OriginRef)
	if err != nil {
		return e, false, err
	}
	take := func(field string, sealed []byte, with ...[]byte) {
		if len(sealed) == 0 || err != nil {
			return
		}
		if len(with) == 0 || with[0] == nil || field == "sealed" && lost {
			erased = true
			return
		}
		var x personal
		if x, err = openPersonal(&l, field, sealed, with); err == nil {
			err = x.put(&e)
		}
	}
	take("sealed", l.Sealed, keys...)
	take("sealed_subject", l.SealedSubject, subject)
	take("sealed_actor", l.SealedActor, actor)
	return e, erased, err
}

func (x *personal) put(e *apitoken.Event) error {
	if x.Subject != "" {
		e.Subject = x.Subject
	}
	if x.Actor != "" {
		e.Actor = x.Actor
	}
	if x.Reason != "" {
		e.Reason = x.Reason
	}
	if x.Address.IsValid() || x.UserAgent != "" || x.RequestID != "" {
		e.Origin = apitoken.Origin{Address: x.Address, UserAgent: x.UserAgent, RequestID: x.RequestID}
	}
	if x.Extra != nil {
		e.Extra = x.Extra
	}
	if x.Target != "" {
		return e.Target.UnmarshalText([]byte(x.Target))
	}
	return nil
}

// byRef returns the key of a pseudonym, false where it was erased. The caller holds mu.
func (v *Vault) byRef(ref string) (person, bool, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(ref)
	if err != nil || len(b) != 16 {
		return person{}, false, fmt.Errorf("ledger: %.32q is no pseudonym", ref)
	}
	at := binary.BigEndian.Uint32(b)
	if at >= v.count {
		return person{}, false, nil
	}
	s, used, err := v.readAt(at)
	if err != nil || !used || s.random != [12]byte(b[4:]) {
		return person{}, false, err
	}
	p, err := v.openSlot(at, &s)
	return p, err == nil, err
}
