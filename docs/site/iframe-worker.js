/* A browser starts no Worker for a page that was opened from the disk (file://). Search runs in
 * one, so here a hidden frame takes its place: it loads the same script, and messages go to and
 * fro between the two windows. Served over http, the browser's own Worker is used. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      const frame = document.createElement("iframe")
      frame.hidden = true
      window.addEventListener("message", event => {
        if (event.source !== frame.contentWindow) return
        const message = new MessageEvent("message", { data: event.data })
        this.dispatchEvent(message)
        if (this.onmessage) this.onmessage(message)
      })

      // the script asks for others by importScripts and waits for the promise
      const start = `
        window.importScripts = (...urls) => urls.reduce((done, url) => done.then(() =>
          new Promise((resolve, reject) => {
            const script = document.createElement("script")
            script.src = url
            script.onload = resolve
            script.onerror = reject
            document.body.appendChild(script)
          })), Promise.resolve())
        window.postMessage = message => parent.postMessage(message, "*")
        window.IFrameWorker = true`
      frame.srcdoc = `<body><script>${start}</script><script src="${url}"></script></body>`
      frame.addEventListener("load", () => {
        this.frame = frame
        for (const message of this.waiting) this.postMessage(message)
      })
      document.body.appendChild(frame)
    }

    postMessage(message) {
      if (!this.frame) return this.waiting.push(message)
      const event = new MessageEvent("message", { data: message })
      this.frame.contentWindow.dispatchEvent(event)
    }

    terminate() { this.frame?.remove() }
  }
}
