// Package legacy reads access tokens that are not RFC 9068's, as a profile.Profile describes them. It decides what a token says, once
// its signature was found good; who is trusted and what the token may do is decided by the root, which calls it.
package legacy

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken/internal/hook"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/profile"
)

const (
	maxKeys   = 16  // of one issuer: a token without a kid may make all of one algorithm be tried
	maxValues = 256 // scopes or roles of a token
	maxText   = 255 // bytes of a name
)

// Reader reads the tokens of one issuer. It never changes after New.
type Reader struct {
	p    profile.Profile
	keys []*jws.PublicKey
}

// New checks and copies p. issuer is the issuer's name, which is its iss where p names none.
func New(issuer string, p *profile.Profile) (*Reader, error) {
	r := &Reader{p: *p}
	c := &r.p
	defaults := func(list *[]string, names ...string) {
		if *list = slices.Clone(*list); len(*list) == 0 {
			*list = names
		}
	}
	defaults(&c.Types, "JWT", "")
	defaults(&c.Iss, issuer)
	defaults(&c.Subject, "sub")
	defaults(&c.Client, "client_id", "azp", "cid")
	defaults(&c.ID, "jti")
	defaults(&c.Audience, "aud")
	defaults(&c.Scopes, "scope", "scp")
	defaults(&c.Roles, "roles")
	if c.Refuse = slices.Clone(c.Refuse); c.Refuse == nil {
		// Of an ID token (OpenID Connect Core 1.0 §2): what a client was told of a user opens no API.
		c.Refuse = []string{"nonce", "at_hash", "c_hash"}
	}
	c.Require = maps.Clone(c.Require)
	c.RoleScopes = maps.Clone(c.RoleScopes)
	for role, scopes := range c.RoleScopes {
		c.RoleScopes[role] = slices.Clone(scopes)
	}

	switch {
	case len(c.Keys) > maxKeys:
		return nil, fmt.Errorf("%d Keys, at most %d", len(c.Keys), maxKeys)
	case c.Until.IsZero() && (c.InsecureNoExpiry || c.InsecureNoIssuedAt):
		return nil, errors.New("InsecureNoExpiry and InsecureNoIssuedAt need Until: nothing else ends such tokens")
	}
	for _, typ := range c.Types {
		if strings.HasPrefix(strings.ToLower(typ), "application/") {
			return nil, fmt.Errorf("the type %q: leave out application/", typ)
		}
	}
	for _, k := range c.Keys {
		key, err := publicKey(k, c.InsecureShortSecrets)
		if err != nil {
			return nil, err
		}
		r.keys = append(r.keys, key)
	}
	c.Keys = nil
	return r, nil
}

func publicKey(k profile.Key, short bool) (*jws.PublicKey, error) {
	secret, ok := k.Key.([]byte)
	if !ok {
		return jws.NewPublicKey(k.KID, k.Alg, k.Key)
	}
	if len(secret) == 0 {
		return nil, errors.New("an empty secret")
	}
	if s := string(secret); strings.Contains(s, "-----BEGIN ") || strings.HasPrefix(s, "ssh-") {
		return nil, errors.New("a key's text where a secret belongs: whoever has a public key could sign with it")
	}
	if secret = slices.Clone(secret); short {
		// HMAC fills a secret up with zeros by itself (RFC 2104 §2): under these it is the same secret.
		secret = append(secret, make([]byte, max(0, 64-len(secret)))...)
	}
	return jws.NewSecret(k.KID, k.Alg, secret)
}

// Keys are the profile's own; none: they come from elsewhere.
func (r *Reader) Keys() []*jws.PublicKey { return r.keys }

// SameUsers is the profile's.
func (r *Reader) SameUsers() bool { return r.p.SameUsers }

// Until is the profile's.
func (r *Reader) Until() time.Time { return r.p.Until }

// Laxity is what the profile takes without.
func (r *Reader) Laxity() jws.Laxity {
	return jws.Laxity{NoClient: r.p.NoClient, NoAudience: r.p.InsecureNoAudience, NoIssuedAt: r.p.InsecureNoIssuedAt}
}

// Takes reports whether tokens with this iss and typ are the issuer's.
func (r *Reader) Takes(iss, typ string) bool {
	return slices.Contains(r.p.Iss, iss) && slices.ContainsFunc(r.p.Types, func(want string) bool { return jws.IsType(typ, want) })
}

// Meets reports whether a token could be both issuers'.
func (r *Reader) Meets(o *Reader) bool {
	return slices.ContainsFunc(r.p.Iss, func(iss string) bool {
		return slices.ContainsFunc(r.p.Types, func(typ string) bool { return o.Takes(iss, typ) })
	})
}

// Token is a JWT that is read by a profile.
type Token struct {
	jws.Token
	members map[string]string // the payload's members as they stand; without cnf and act

	// Set by Read.
	Scopes, Roles []string
	Endless       bool // it has no exp of its own
}

// Parse reads a token. headers is as for tokens of RFC 9068.
func Parse(headers *jws.Headers, token string, maxBytes int) (*Token, error) {
	t := &Token{members: map[string]string{}}
	err := headers.ParseOpen(token, maxBytes, &t.Token, func(name, value string) { t.members[name] = value })
	return t, err
}

// Issuer is iss, empty where there is none; false: it is no text.
func (t *Token) Issuer() (string, bool) {
	raw, there := t.members["iss"]
	if !there {
		return "", true
	}
	iss, ok := jws.ReadText(raw)
	return iss, ok && iss != ""
}

// Read fills t with what the token says by the profile. The caller has verified its signature. Where the token has no ID, a digest of
// what was signed is it; where it has no exp and may do without, Until is.
func (r *Reader) Read(t *Token) (err error) {
	c := &t.Claims
	for _, name := range r.p.Refuse {
		if _, there := t.find(name); there {
			return fmt.Errorf("it has the claim %s, which this issuer's access tokens do not have", name)
		}
	}
	for name, want := range r.p.Require {
		raw, there := t.find(name)
		if got, ok := jws.ReadText(raw); !there || !ok || got != want {
			return fmt.Errorf("its claim %s is not %q", name, want)
		}
	}

	var m profile.Mapped
	for _, x := range []struct {
		into  *string
		names []string
	}{{&m.Subject, r.p.Subject}, {&m.Client, r.p.Client}, {&m.ID, r.p.ID}, {&c.SessionID, []string{"sid"}}} {
		if *x.into, err = t.name(x.names); err != nil {
			return err
		}
	}
	if c.Audience, err = t.first(r.p.Audience); err != nil {
		return err
	}
	for _, x := range []struct {
		into *int64
		name string
	}{{&c.Expires, "exp"}, {&c.IssuedAt, "iat"}, {&c.NotBefore, "nbf"}} {
		if raw, there := t.members[x.name]; there {
			n, ok := jws.ReadDate(raw)
			if !ok {
				return fmt.Errorf("its claim %s is no date", x.name)
			}
			*x.into = n
		}
	}
	if m.Scopes, err = t.all(r.p.Scopes); err != nil {
		return err
	}
	if m.Roles, err = t.all(r.p.Roles); err != nil {
		return err
	}
	if m.ID == "" {
		sum := sha256.Sum256([]byte(t.SigningInput)) // not of the signature: one token may have several
		m.ID = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	if r.p.Map != nil {
		if err := r.mapped(t, &m); err != nil {
			return err
		}
	}

	c.Issuer, _ = t.Issuer()
	c.Subject, c.ClientID, c.ID = m.Subject, m.Client, m.ID
	if c.Expires == 0 && r.p.InsecureNoExpiry {
		c.Expires, t.Endless = r.p.Until.Unix(), true
	}
	t.Scopes = m.Scopes
	for _, role := range m.Roles {
		if brings, taken := r.p.RoleScopes[role]; taken && !slices.Contains(t.Roles, role) {
			t.Roles = append(t.Roles, role)
			t.Scopes = append(t.Scopes, brings...)
		}
	}
	return nil
}

// mapped calls the host's Map.
func (r *Reader) mapped(t *Token, m *profile.Mapped) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = hook.Panicked(p)
		}
	}()
	return r.p.Map(t.Payload(), m)
}

// find returns the member that name leads to, as it stands.
func (t *Token) find(name string) (raw string, there bool) {
	if !strings.HasPrefix(name, "/") {
		raw, there = t.members[name]
		return raw, there
	}
	steps := strings.Split(name[1:], "/")
	for i, step := range steps {
		step = strings.ReplaceAll(strings.ReplaceAll(step, "~1", "/"), "~0", "~")
		if i == 0 {
			raw, there = t.members[step]
		} else {
			var in map[string]json.RawMessage
			if json.Unmarshal([]byte(raw), &in) != nil { // no object: nothing is in it
				return "", false
			}
			var v json.RawMessage
			v, there = in[step]
			raw = string(v)
		}
		if !there {
			return "", false
		}
	}
	return raw, true
}

// name is the text of the first claim of names that is there; a whole number counts as its digits.
func (t *Token) name(names []string) (string, error) {
	for _, name := range names {
		raw, there := t.find(name)
		if !there || raw == "null" {
			continue
		}
		s, ok := jws.ReadText(raw)
		if !ok {
			s = raw
			if digits := strings.Trim(raw, "0123456789"); digits != "" || len(raw) > 20 {
				return "", fmt.Errorf("its claim %s is neither a text nor a whole number", name)
			}
		}
		if s == "" || len(s) > maxText {
			return "", fmt.Errorf("its claim %s is empty or too long", name)
		}
		return s, nil
	}
	return "", nil
}

// first is the list of the first claim of names that is there.
func (t *Token) first(names []string) ([]string, error) {
	for _, name := range names {
		if list, there, err := t.list(name, false); there || err != nil {
			return list, err
		}
	}
	return nil, nil
}

// all is the lists of all claims of names.
func (t *Token) all(names []string) (out []string, err error) {
	for _, name := range names {
		list, _, err := t.list(name, true)
		if err != nil {
			return nil, err
		}
		if out = append(out, list...); len(out) > maxValues {
			return nil, fmt.Errorf("over %d scopes or roles", maxValues)
		}
	}
	return out, nil
}

// list is the texts of a claim that is one text or a list of texts. words: one text is words with spaces between.
func (t *Token) list(name string, words bool) (list []string, there bool, err error) {
	raw, there := t.find(name)
	if !there || raw == "null" {
		return nil, false, nil
	}
	if s, ok := jws.ReadText(raw); ok {
		if words {
			return strings.Fields(s), true, nil
		}
		return []string{s}, true, nil
	}
	if json.Unmarshal([]byte(raw), &list) != nil {
		return nil, true, fmt.Errorf("its claim %s is neither a text nor a list of texts", name)
	}
	return list, true, nil
}
