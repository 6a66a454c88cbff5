package remote

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/feed"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/store"
)

// The feed travels as JSON with the entries in one base64 member, 42 bytes each: a million rules are 56 MB, not 150.

// feedAnswer is the body of one answer of the feed.
type feedAnswer struct {
	Nonce       string   `json:"nonce"` // the caller's: an answer that was kept somewhere is told from a fresh one
	From        string   `json:"from"`
	Next        string   `json:"next"`
	More        bool     `json:"more,omitempty"`
	AgeMS       int64    `json:"age_ms"`
	MaxLifetime int64    `json:"max_lifetime_ms"`
	Key         []byte   `json:"key"`
	Namespace   string   `json:"namespace"`
	KeySet      string   `json:"key_set"`
	Compromised []string `json:"compromised,omitempty"`
	DropOpaque  bool     `json:"drop_opaque,omitempty"`
	Changed     []byte   `json:"changed,omitempty"` // hashes of 16 bytes
	Entries     []byte   `json:"entries,omitempty"` // see appendEntry
	Prefix      string   `json:"prefix,omitempty"`
	KeyTags     []byte   `json:"api_key_tags,omitempty"` // kid and key, 36 bytes each; a key of zeros is not open
	Imported    []byte   `json:"imported,omitempty"`     // 8 bytes each
}

const (
	entrySize = 1 + 1 + 16 + 8 + 8 + 8
	hashSize  = 16
	tagSize   = 4 + 32
)

// kinds gives each kind of target its number on the wire. Numbers are never used again for something else; an unknown one
// makes the follower refuse everything, because a newer issuer says something that it cannot weigh.
var kinds = []string{"", "token", "grant", "subject", "sessions", "client", "role", "signingkey", "everything", "held"}

func appendEntry(b []byte, e feed.Entry) []byte {
	kind := byte(0xff)
	for i, k := range kinds {
		if k == e.Kind {
			kind = byte(i)
		}
	}
	b = append(b, e.Class, kind)
	b = append(b, e.Hash[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Value))
	b = binary.BigEndian.AppendUint64(b, uint64(e.At))
	return binary.BigEndian.AppendUint64(b, uint64(e.Expires))
}

func readEntry(b []byte) feed.Entry {
	e := feed.Entry{Class: b[0], Kind: "unknown", Hash: [16]byte(b[2:18])}
	if int(b[1]) < len(kinds) {
		e.Kind = kinds[b[1]]
	}
	e.Value = int64(binary.BigEndian.Uint64(b[18:]))
	e.At = int64(binary.BigEndian.Uint64(b[26:]))
	e.Expires = int64(binary.BigEndian.Uint64(b[34:]))
	return e
}

func encodeView(v *feed.View, nonce string, from store.Position) ([]byte, error) {
	a := feedAnswer{
		Nonce: nonce, From: formatPosition(from), Next: formatPosition(v.Next), More: v.More, AgeMS: (v.Age + time.Millisecond - 1).Milliseconds(),
		MaxLifetime: v.MaxLifetime.Milliseconds(), Key: v.Key, Namespace: v.Namespace, KeySet: v.KeySet, Compromised: v.Compromised, DropOpaque: v.DropOpaque,
	}
	a.Prefix = v.Prefix
	for _, t := range v.APIKeyTags {
		var key [tagSize - 4]byte
		copy(key[:], t.Key)
		a.KeyTags = append(append(a.KeyTags, t.KID[:]...), key[:]...)
	}
	for _, e := range v.Rules {
		a.Entries = appendEntry(a.Entries, e)
	}
	for _, h := range v.Imported {
		a.Imported = append(a.Imported, h[:]...)
	}
	for _, h := range v.Changed {
		a.Changed = append(a.Changed, h[:]...)
	}
	return json.Marshal(a)
}

var errAnswer = notIssuer("an answer that makes no sense")

// decodeView reads an answer to the question nonce, from.
func decodeView(body []byte, nonce string, from store.Position) (feed.View, error) {
	var a feedAnswer
	var v feed.View
	if err := json.Unmarshal(body, &a); err != nil {
		return v, errAnswer
	}
	next, ok := parsePosition(a.Next)
	if a.Nonce != nonce || a.From != formatPosition(from) || !ok || len(a.Entries)%entrySize != 0 || len(a.Changed)%hashSize != 0 || len(a.KeyTags)%tagSize != 0 || len(a.Imported)%8 != 0 ||
		a.AgeMS < 0 || a.MaxLifetime < 0 || len(a.Key) < 16 || a.Namespace == "" {
		return v, errAnswer
	}
	v = feed.View{Key: a.Key, Namespace: a.Namespace, Compromised: a.Compromised, DropOpaque: a.DropOpaque, KeySet: a.KeySet,
		Next: next, More: a.More, Age: time.Duration(a.AgeMS) * time.Millisecond, MaxLifetime: time.Duration(a.MaxLifetime) * time.Millisecond}
	v.Prefix = a.Prefix
	for b := a.KeyTags; len(b) > 0; b = b[tagSize:] {
		t := feed.Tag{KID: [4]byte(b)}
		if key := b[4:tagSize:tagSize]; !allZero(key) {
			t.Key = key
		}
		v.APIKeyTags = append(v.APIKeyTags, t)
	}
	for b := a.Entries; len(b) > 0; b = b[entrySize:] {
		v.Rules = append(v.Rules, readEntry(b))
	}
	for b := a.Imported; len(b) > 0; b = b[8:] {
		v.Imported = append(v.Imported, [8]byte(b))
	}
	for b := a.Changed; len(b) > 0; b = b[hashSize:] {
		v.Changed = append(v.Changed, [16]byte(b))
	}
	return v, nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func formatPosition(p store.Position) string {
	return strconv.FormatUint(p.History, 16) + "." + strconv.FormatInt(p.N, 16)
}

func parsePosition(s string) (store.Position, bool) {
	hist, n, ok := strings.Cut(s, ".")
	h, err1 := strconv.ParseUint(hist, 16, 64)
	m, err2 := strconv.ParseInt(n, 16, 64)
	if !ok || err1 != nil || err2 != nil || m < 0 {
		return store.Position{}, false
	}
	return store.Position{History: h, N: m}, true
}

// introspection is the answer about an opaque token: RFC 7662's members, and this module's own.
type introspection struct {
	Active   bool               `json:"active"`
	Issuer   string             `json:"iss,omitempty"`
	Subject  string             `json:"sub,omitempty"`
	Client   string             `json:"client_id,omitempty"`
	ID       string             `json:"jti,omitempty"`
	Scope    string             `json:"scope,omitempty"`
	Audience []string           `json:"aud,omitempty"`
	Expires  int64              `json:"exp,omitempty"`
	IssuedAt int64              `json:"iat,omitempty"`
	Kind     string             `json:"apitoken_kind,omitempty"`
	Position string             `json:"apitoken_pos,omitempty"`
	Grant    string             `json:"sid,omitempty"`
	Roles    []string           `json:"roles,omitempty"`
	Claims   *json.RawMessage   `json:"apitoken_claims,omitempty"`
	Cnf      *map[string]string `json:"cnf,omitempty"`
}

func encodeIntrospection(x apitoken.Introspection) ([]byte, error) {
	if !x.Active {
		return []byte(`{"active":false}`), nil
	}
	t := x.Token
	out := introspection{Active: true, Issuer: t.Issuer, Subject: t.Subject, Client: t.Client, ID: t.ID, Scope: t.Scopes.String(), Audience: t.Audiences,
		IssuedAt: t.IssuedAt.Unix(), Kind: opaque.TokenKind(t.APIKey), Position: x.Position, Grant: t.Grant, Roles: t.Roles}
	if !t.ExpiresAt.IsZero() {
		out.Expires = t.ExpiresAt.Unix()
	}
	if raw, ok := t.Claims.(json.RawMessage); ok {
		out.Claims = &raw
	}
	if name, print, ok := strings.Cut(t.Binding, ":"); ok {
		out.Cnf = &map[string]string{name: print}
	}
	return json.Marshal(out)
}

func decodeIntrospection(body []byte) (apitoken.Introspection, error) {
	var a introspection
	if err := json.Unmarshal(body, &a); err != nil {
		return apitoken.Introspection{}, errAnswer
	}
	if !a.Active {
		return apitoken.Introspection{}, nil
	}
	scopes, err := apitoken.ParseScopes(a.Scope)
	if err != nil || a.Cnf != nil {
		return apitoken.Introspection{}, errAnswer
	}
	x := apitoken.Introspection{Active: true, Position: a.Position, Token: apitoken.TokenSpec{APIKey: a.Kind == opaque.TokenKind(true), ID: a.ID, Issuer: a.Issuer, Subject: a.Subject,
		Client: a.Client, Grant: a.Grant, Audiences: a.Audience, Scopes: scopes, Roles: a.Roles, IssuedAt: time.Unix(a.IssuedAt, 0)}}
	if a.Expires != 0 {
		x.Token.ExpiresAt = time.Unix(a.Expires, 0)
	}
	if a.Claims != nil {
		x.Token.Claims = *a.Claims
	}
	return x, nil
}

// basicOf splits an Authorization header of HTTP Basic.
func basicOf(header string) (id, secret string, ok bool) {
	scheme, rest, found := strings.Cut(header, " ")
	if !found || !strings.EqualFold(scheme, "Basic") {
		return "", "", false
	}
	raw, err := base64.StdEncoding.DecodeString(rest)
	if err != nil {
		return "", "", false
	}
	id, secret, ok = strings.Cut(string(raw), ":")
	return id, secret, ok
}
