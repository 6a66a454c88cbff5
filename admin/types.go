package admin

import (
	"encoding/json"
	"time"

	"github.com/apitoken-go/apitoken"
)

// The JSON of the API. Times are RFC 3339; lengths of time are seconds.

// Page is a part of a listing.
type Page[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty"` // what after is for the next page; empty: there is none
}

// Status is how a service stands.
type Status struct {
	Issuer     string    `json:"issuer"`
	Audiences  []string  `json:"audiences"`
	FirstParty string    `json:"first_party"`
	Now        time.Time `json:"now"` // its clock

	ViewAge      float64 `json:"view_age_seconds"` // of what the process knows of revocations
	Stale        bool    `json:"stale"`            // older than max_staleness_seconds: it refuses
	MaxStaleness float64 `json:"max_staleness_seconds"`

	Refusals    int                `json:"refusals_waiting"`         // counted, and not in the log yet
	Uses        int                `json:"uses_waiting"`             // counted, and not stored yet
	Revocations int                `json:"revocations_waiting"`      // in force here, and not in the store yet
	Unreadable  int                `json:"unreadable"`               // records set aside
	Sinks       map[string]float64 `json:"sinks_behind_seconds"`     // by name
	SinkLimits  map[string]float64 `json:"sinks_max_lag_seconds"`    // 0: nothing waits for it
	KeyRotation float64            `json:"key_rotation_seconds"`     // negative: only by call
	KeepEvents  float64            `json:"keep_events_seconds"`      // 0: for ever
	MaxAccess   float64            `json:"max_access_seconds"`       // the longest access token
	MaxGrant    float64            `json:"max_session_seconds"`      // the longest session
	KeyLimit    int                `json:"max_keys_per_subject"`     // 0: no limit
	GrantLimit  int                `json:"max_sessions_per_subject"` // 0: no limit
	Clients     int                `json:"clients"`
	Backup      bool               `json:"backup"` // the service can make one

	ClientsDisabled int `json:"clients_disabled"`
}

// Session is a live grant.
type Session struct {
	ID          string          `json:"id"`
	Subject     string          `json:"subject"`
	Client      string          `json:"client"`
	Scopes      apitoken.Scopes `json:"scopes"`
	Roles       []string        `json:"roles,omitempty"`
	Created     time.Time       `json:"created"`
	Expires     time.Time       `json:"expires"`
	LastUsed    time.Time       `json:"last_used,omitzero"`
	LastAddress string          `json:"last_address,omitempty"`
	Address     string          `json:"address,omitempty"`
	UserAgent   string          `json:"user_agent,omitempty"`
	Uses        uint64          `json:"uses"`
	UsedScopes  apitoken.Scopes `json:"used_scopes,omitempty"`
}

// SessionQuery selects sessions. No field set: all.
type SessionQuery struct {
	Subject string `json:"-" query:"subject"`
	Client  string `json:"-" query:"client"`
	After   string `json:"-" query:"after"`
	Limit   int    `json:"-" query:"limit"` // 0: 100; at most 500
}

// Key is an API key; it holds nothing of its secret.
type Key struct {
	ID          string          `json:"id"`
	Subject     string          `json:"subject"`
	Name        string          `json:"name,omitempty"`
	Start       string          `json:"start"`
	Last        string          `json:"last,omitempty"` // its last four characters
	State       string          `json:"state"`          // active, expired, revoked, disabled, rotated or exhausted
	Scopes      apitoken.Scopes `json:"scopes"`
	Created     time.Time       `json:"created"`
	Expires     time.Time       `json:"expires,omitzero"` // absent: never
	LastUsed    time.Time       `json:"last_used,omitzero"`
	LastAddress string          `json:"last_address,omitempty"`
	UsedScopes  apitoken.Scopes `json:"used_scopes,omitempty"`
	Uses        uint64          `json:"uses"`
	MaxUses     uint64          `json:"max_uses,omitempty"`
	UsesPer     string          `json:"uses_per,omitempty"` // hour, day or month of UTC, in which MaxUses are filled up; absent: never
	Replaced    time.Time       `json:"replaced,omitzero"`  // when a rotated key stops working
	Revoked     bool            `json:"revoked,omitempty"`
	Disabled    bool            `json:"disabled,omitempty"`    // refused until it is enabled again
	Predecessor string          `json:"predecessor,omitempty"` // ID of the key that it was rotated from
	Successor   string          `json:"successor,omitempty"`   // ID of the key that took its place

	Metadata map[string]string `json:"metadata,omitempty"`
}

// KeyQuery selects API keys.
type KeyQuery struct {
	Subject string `json:"-" query:"subject"`
	After   string `json:"-" query:"after"`
	Limit   int    `json:"-" query:"limit"` // 0: 100; at most 500
}

// ID names one thing.
type ID struct {
	ID string `json:"-" path:"id"`
}

// NewKey asks for an API key.
type NewKey struct {
	Subject string          `json:"subject"`
	Name    string          `json:"name,omitempty"`
	Scopes  apitoken.Scopes `json:"scopes"`
	Expires time.Time       `json:"expires,omitzero"` // absent: as the service's lifetimes say
	MaxUses uint64          `json:"max_uses,omitempty"`
	UsesPer string          `json:"uses_per,omitempty"` // hour, day or month of UTC, in which MaxUses are filled up; absent: never

	Metadata map[string]string `json:"metadata,omitempty"`
}

// MadeKey is an API key with its secret, which is shown this once.
type MadeKey struct {
	Key    Key    `json:"key"`
	Secret string `json:"secret"`
}

// Rotation asks for a successor.
type Rotation struct {
	ID      string `json:"-" path:"id"`
	Overlap int64  `json:"overlap_seconds"` // how long the older secret works
}

// KeyEdit changes an API key. What is not set stays as it is.
type KeyEdit struct {
	ID       string            `json:"-" path:"id"`
	Name     *string           `json:"name,omitempty"`
	Scopes   *apitoken.Scopes  `json:"scopes,omitempty"`
	Expires  time.Time         `json:"expires,omitzero"`
	Never    bool              `json:"never,omitempty"`    // it ends by call only
	Metadata map[string]string `json:"metadata,omitempty"` // put beside what is there; an empty value takes one away
	Disabled *bool             `json:"disabled,omitempty"` // refused until it is enabled again
}

// Ending says why one thing ends.
type Ending struct {
	ID     string `json:"-" path:"id"`
	Reason string `json:"reason"`
}

// ClientInfo is a registered client.
type ClientInfo struct {
	ID           string          `json:"id"`
	Name         string          `json:"name,omitempty"`
	Public       bool            `json:"public,omitempty"`
	GrantTypes   []string        `json:"grant_types"`
	Scopes       apitoken.Scopes `json:"scopes"`
	Audiences    []string        `json:"audiences,omitempty"`
	RedirectURIs []string        `json:"redirect_uris,omitempty"`
	AuthMethod   string          `json:"auth_method,omitempty"`
	JWKS         json.RawMessage `json:"jwks,omitempty"`
	TLSName      string          `json:"tls_name,omitempty"`
	Disabled     bool            `json:"disabled,omitempty"`
	Created      time.Time       `json:"created"`
	Expires      time.Time       `json:"expires,omitzero"`  // of a client that nobody here has made
	Secrets      []ClientSecret  `json:"secrets,omitempty"` // the live ones, the oldest first; in the answer for one client
}

// ClientSecret tells of one of a client's secrets.
type ClientSecret struct {
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"` // absent: never
}

// PageQuery is a place in a listing.
type PageQuery struct {
	After string `json:"-" query:"after"`
	Limit int    `json:"-" query:"limit"` // 0: 100; at most 500
}

// ClientSpec asks for a client.
type ClientSpec struct {
	ID           string          `json:"id,omitempty"` // empty: the service makes one
	Name         string          `json:"name"`
	Public       bool            `json:"public,omitempty"`
	GrantTypes   []string        `json:"grant_types"`
	Scopes       apitoken.Scopes `json:"scopes"`
	Audiences    []string        `json:"audiences,omitempty"`
	RedirectURIs []string        `json:"redirect_uris,omitempty"`
	AuthMethod   string          `json:"auth_method,omitempty"`
	JWKS         json.RawMessage `json:"jwks,omitempty"`
	TLSName      string          `json:"tls_name,omitempty"`
}

// MadeClient is a client with a new secret, which is shown this once; empty where it proves itself by something else.
type MadeClient struct {
	Client ClientInfo `json:"client"`
	Secret string     `json:"secret,omitempty"`
}

// Able says whether a client may do anything.
type Able struct {
	ID       string `json:"-" path:"id"`
	Disabled bool   `json:"disabled"`
}

// Role is a name for scopes.
type Role struct {
	Name   string          `json:"name" path:"name"`
	Scopes apitoken.Scopes `json:"scopes"`
}

// SigningKeyInfo is the public side of a signing key.
type SigningKeyInfo struct {
	ID        string          `json:"id"`
	Algorithm string          `json:"algorithm"`
	Audience  string          `json:"audience,omitempty"` // whose tokens it signs; empty: those of all others
	State     string          `json:"state"`              // next, active, retired or compromised
	Since     time.Time       `json:"since"`
	Until     time.Time       `json:"until,omitzero"`    // when that ends by itself; absent: not known yet
	Outside   bool            `json:"outside,omitempty"` // its private half is in a KMS or an HSM
	JWK       json.RawMessage `json:"jwk,omitempty"`
}

// Revocation asks that what Target names ends.
type Revocation struct {
	Target apitoken.Target `json:"target"` // such as "subject:alice"
	Reason string          `json:"reason"`
}

// LeakedText is a text in which credentials of the service may be.
type LeakedText struct {
	Text   string `json:"text"` // at most 1 MiB
	Reason string `json:"reason"`
}

// Ended says how many credentials were ended.
type Ended struct {
	Ended int `json:"ended"`
}

// Question asks why a token is refused, or let in.
type Question struct {
	Token string          `json:"token"`
	Needs apitoken.Scopes `json:"needs,omitempty"`
	Any   bool            `json:"any,omitempty"` // one of Needs is enough
}

// Answer is the course of one validation.
type Answer struct {
	Good   bool       `json:"good"`
	Class  string     `json:"class,omitempty"` // of the refusal, such as "revoked"
	Detail string     `json:"detail,omitempty"`
	Steps  []Step     `json:"steps"`
	Token  *TokenInfo `json:"token,omitempty"` // as far as its signature vouches for it
}

// Step is one check.
type Step struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

// TokenInfo is what a token says.
type TokenInfo struct {
	Kind      string          `json:"kind"`
	ID        string          `json:"id"`
	Issuer    string          `json:"issuer"`
	Subject   string          `json:"subject"`
	Client    string          `json:"client,omitempty"`
	Session   string          `json:"session,omitempty"`
	Audiences []string        `json:"audiences,omitempty"`
	Scopes    apitoken.Scopes `json:"scopes"`
	Roles     []string        `json:"roles,omitempty"`
	Actors    []string        `json:"actors,omitempty"`
	Issued    time.Time       `json:"issued"`
	Expires   time.Time       `json:"expires,omitzero"`
	Binding   string          `json:"binding,omitempty"`
}

// EventQuery selects audit events; all fields that are set must match.
type EventQuery struct {
	Subject     string    `json:"-" query:"subject"`
	Client      string    `json:"-" query:"client"`
	TokenID     string    `json:"-" query:"token_id"`
	Grant       string    `json:"-" query:"session"`
	Issuer      string    `json:"-" query:"issuer"`
	Type        string    `json:"-" query:"type"`
	From        time.Time `json:"-" query:"from"`
	To          time.Time `json:"-" query:"to"`
	OldestFirst bool      `json:"-" query:"oldest_first"`
	Cursor      string    `json:"-" query:"cursor"`
	Limit       int       `json:"-" query:"limit"` // 0: 200; at most 1000
}

// Events is a page of audit events.
type Events struct {
	Items  []apitoken.Event `json:"items"`
	Cursor string           `json:"cursor,omitempty"` // of the next page; empty: nothing more now
}

// Expiry is something that stops working by itself.
type Expiry struct {
	Kind   string    `json:"kind"` // apikey, secret or grant
	ID     string    `json:"id"`
	Owner  string    `json:"owner"`
	Client string    `json:"client,omitempty"`
	Name   string    `json:"name,omitempty"`
	Ends   time.Time `json:"ends"`
}

// ExpiryQuery asks what ends soon: API keys and clients' secrets.
type ExpiryQuery struct {
	Before time.Time `json:"-" query:"before"`
	Limit  int       `json:"-" query:"limit"` // 0: 100; at most 500
}

// Unreadable is a stored record that cannot be read.
type Unreadable struct {
	Kind  string `json:"kind"`
	ID    string `json:"id"`
	Error string `json:"error"`
}

// UnreadableQuery asks for records that cannot be read.
type UnreadableQuery struct {
	All bool `json:"-" query:"all"` // read the whole store, not only what the process has met
}

// None is an empty input or answer.
type None struct{}
