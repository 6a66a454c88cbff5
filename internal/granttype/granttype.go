// Package granttype names the OAuth grant types that the service knows, for the packages of this module. A host writes the strings,
// and Clients refuses others.
package granttype

// The names in RFC 6749 §4 and in the registry of RFC 7591 §4.1.
const (
	ClientCredentials = "client_credentials"
	RefreshToken      = "refresh_token"
	AuthorizationCode = "authorization_code"
	TokenExchange     = "urn:ietf:params:oauth:grant-type:token-exchange" // RFC 8693
	JWTBearer         = "urn:ietf:params:oauth:grant-type:jwt-bearer"     // RFC 7523
	DeviceCode        = "urn:ietf:params:oauth:grant-type:device_code"    // RFC 8628
)

// All are all of them.
var All = []string{ClientCredentials, RefreshToken, AuthorizationCode, TokenExchange, JWTBearer, DeviceCode}
