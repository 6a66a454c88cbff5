// Package wycheproof runs the signature vectors of Project Wycheproof (github.com/c2sp/wycheproof) through the code
// that verifies tokens. It is a module of its own, so that nobody downloads the vectors with the library.
package wycheproof
