package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"

	"github.com/apitoken-go/apitoken"
)

// settings are what -config holds.
type settings struct {
	Scopes    map[apitoken.Scope]string  `json:"scopes"`    // and what each is for
	Roles     map[string]apitoken.Scopes `json:"roles"`     // what each may do
	Audiences []string                   `json:"audiences"` // of other services that tokens may be asked for
	Users     []user                     `json:"users"`
	Clients   []client                   `json:"clients"`

	Registration *registration `json:"registration"`  // absent: programs cannot register clients
	RequireNonce bool          `json:"require_nonce"` // of DPoP proofs at the endpoints

	demo bool // there is no file: anybody may know the passwords
}

// user may log in. A real host asks its own directory: the service only wants to know who was confirmed.
type user struct {
	Name     string   `json:"name"`
	Password password `json:"password"`
	Roles    []string `json:"roles"`
}

func readSettings(file string) (*settings, error) {
	if file == "" {
		return demonstration(), nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var s settings
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields() // a typing error in a scope list must not pass for an empty one
	if err := d.Decode(&s); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return &s, nil
}

func demonstration() *settings {
	return &settings{demo: true,
		Scopes: map[apitoken.Scope]string{"orders:read": "See orders", "orders:write": "Place orders", "keys": "Manage your API keys", "operate": "Operate the token service"},
		Roles:  map[string]apitoken.Scopes{"customer": {"orders:read", "orders:write", "keys"}, "viewer": {"orders:read"}, "operator": {"operate"}},
		Users: []user{
			{Name: "alice", Password: hashPassword("wonderland"), Roles: []string{"customer"}},
			{Name: "bob", Password: hashPassword("builder"), Roles: []string{"viewer"}},
			{Name: "olga", Password: hashPassword("switchboard"), Roles: []string{"customer", "operator"}},
		},
		Clients: []client{
			{ID: "cli", Name: "The command line", Public: true, GrantTypes: []string{"authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"},
				Scopes: apitoken.Scopes{"orders:read", "orders:write"}, RedirectURIs: []string{"http://127.0.0.1/callback"}},
			{ID: "reports", Name: "The nightly report", Secret: "only-for-demonstration", GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{"orders:read"}},
		},
	}
}

// password is a salted slow hash. In the file it may also stand in clear; then it is hashed as it is read.
type password struct{ salt, hash []byte }

const (
	iterations = 600_000
	hashedMark = "pbkdf2-sha256:"
)

func hashPassword(clear string) password {
	p := password{salt: make([]byte, 16)}
	rand.Read(p.salt)
	p.hash = p.derive(clear)
	return p
}

func (p password) derive(clear string) []byte {
	b, err := pbkdf2.Key(sha256.New, clear, p.salt, iterations, 32)
	if err != nil {
		panic(err) // only for lengths that FIPS 140 forbids
	}
	return b
}

// matches takes as long for a user that does not exist: the zero password.
func (p password) matches(clear string) bool {
	got := p.derive(clear)
	return len(p.hash) > 0 && hmac.Equal(got, p.hash)
}

// UnmarshalJSON reads a password in clear, or "pbkdf2-sha256:" and 48 bytes of base64: salt and hash.
func (p *password) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	if len(s) < len(hashedMark) || s[:len(hashedMark)] != hashedMark {
		*p = hashPassword(s)
		return nil
	}
	raw, err := base64.StdEncoding.DecodeString(s[len(hashedMark):])
	if err != nil || len(raw) != 48 {
		return fmt.Errorf("a hashed password is %s and 48 bytes of base64", hashedMark)
	}
	p.salt, p.hash = raw[:16], raw[16:]
	return nil
}

// MarshalJSON writes the hash.
func (p password) MarshalJSON() ([]byte, error) {
	return json.Marshal(hashedMark + base64.StdEncoding.EncodeToString(append(p.salt[:len(p.salt):len(p.salt)], p.hash...)))
}
