/**
 * The API's JSON as the page knows it: names and units as in `/api/openapi.json`. Types only.
 *
 * @typedef {{code: string, message: string, step?: string}} Problem
 *
 * @typedef {object} Device
 * @property {string} serial
 * @property {string} name
 * @property {string} description
 * @property {string} user
 * @property {"red"|"yellow"|"green"|"grey"} state
 * @property {string} word
 * @property {boolean} connected
 * @property {string} step
 * @property {number} step_number
 * @property {"pending"|"waiting"|"dispatching"|"dispatched"|"refused"} relay
 * @property {string} [since]
 * @property {string} [peer]
 * @property {number} [rtt_ms]
 * @property {number} bytes_in
 * @property {number} bytes_out
 * @property {Problem} [problem]
 * @property {string} tunnel_server
 * @property {number} [hardware]
 * @property {Moving} [moving]
 * @property {{attempts: number, last: string}} [contested]
 * @property {boolean} own_password
 * @property {string} [site]
 * @property {number} bps_in
 * @property {number} bps_out
 * @property {Uplink[]} [uplinks]
 * @property {Problem & {at: string}} [last_problem]
 *
 * @typedef {{peer: string, dialled?: string, since: string, rtt_ms?: number, streams: number}} Uplink
 * @typedef {{serial: string, tunnel_server: string, rtt_ms?: number, bytes_in: number, bytes_out: number, bps_in: number, bps_out: number}} Figures
 * @typedef {{tunnel_server: string, since: string, until?: string, peer: string, dialled?: string, code?: string, reason?: string, bytes_in: number, bytes_out: number}} Connection
 * @typedef {{name: string, upstream_mbit?: number, limit_mbit?: number, devices: string[], bps: number, minute_bps: number, warn_percent?: number, state: "unknown"|"room"|"full", untold: string[]}} Site
 * @typedef {{ok: boolean, code: string, message: string, certificate?: {fingerprint: string, trust_anchor: string, names: string[]}, name?: string, public: string[]}} Tested
 *
 * @typedef {{state: "queued"|"trying"|"moved"|"both", keep: boolean, tunnel_server?: string, servers: string[], since: string, problem?: Problem}} Moving
 *
 * @typedef {object} TunnelServer
 * @property {string} name
 * @property {string} url
 * @property {boolean} reachable
 * @property {string} since
 * @property {string} [external]
 * @property {string[]} public
 * @property {string} [dispatcher]
 * @property {Problem} [problem]
 * @property {number} devices
 * @property {number} connected
 * @property {string} account
 * @property {string} description
 * @property {string} external_address
 * @property {string} user
 * @property {string} [trusted]
 * @property {boolean} configured
 *
 * @typedef {{server: string, what: string, expires: string, renews: boolean, advice?: string}} Certificate
 *
 * @typedef {object} RecordingServer
 * @property {string} name
 * @property {boolean} reachable
 * @property {Problem} [problem]
 * @property {number} hardware
 * @property {number} cameras
 *
 * @typedef {object} Hardware
 * @property {number} id
 * @property {string} name
 * @property {{via: "tunnel", server: string, serial: string} | {via: "direct", host: string} | {via: "rtsp", url: string}} device
 * @property {string} serial
 * @property {string} model
 * @property {Camera[]} cameras
 *
 * @typedef {object} Camera
 * @property {number} id
 * @property {number} hardware
 * @property {string} serial
 * @property {string} name
 * @property {CameraStatus} status
 *
 * @typedef {object} CameraStatus
 * @property {"connecting"|"recording"|"error"} state
 * @property {string} since
 * @property {Problem} [problem]
 * @property {number} [bitrate_bps]
 * @property {string} [last_frame]
 *
 * @typedef {{id: number, user: string, session?: number, version: string, simulated_cameras: boolean}} Whoami
 * @typedef {{name: string, serial: string, oak: string, user: string, password: string}} SimulatedCamera
 * @typedef {{id: number, name: string, created: string, signed_in?: string}} User
 * @typedef {{id: number, created: string, used: string, peer: string, browser: string, present: boolean}} Session
 * @typedef {{id: number, name: string, created: string, used?: string, token?: string}} Token
 * @typedef {{id: number, at: string, user: string, peer: string, action: string, object: string, detail: string}} AuditEntry
 *
 * @typedef {{upstream_bps: number, downstream_bps: number, order_bps: number}} Line
 *
 * @typedef {object} Plan
 * @property {{days: number}} wish
 * @property {{video_bps: number, audio_bps: number, wire_bps: number, overhead_percent: number, estimate?: {low_bps: number, high_bps: number}}} camera
 * @property {Line} site
 * @property {Line} centre
 * @property {{per_camera_day_bytes: number, per_day_bytes: number, total_bytes: number}} storage
 */

export {};
